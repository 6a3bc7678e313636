"""The stages that make models: from the data to the weights of the policy, the baseline and their merges."""

import hashlib
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import Artifact, Summary, canonical, hash_directories
from cpo_ray.cluster.resources import sampling_needs, streaming_needs, training_needs
from cpo_ray.cluster.session import Bundle
from cpo_ray.config import (
    ObjectiveConfig,
    RunConfig,
    SamplingConfig,
    ScheduledSamplingConfig,
    TrainingConfig,
    stage_inputs,
)
from cpo_ray.errors import Preempted
from cpo_ray.monitoring.console import say
from cpo_ray.monitoring.prometheus import bar
from cpo_ray.monitoring.trackers import track
from cpo_ray.monitoring.training_monitor import TrainingMonitor
from cpo_ray.run import Run


def data(run: Run) -> None:
    """Read, split, cut and tokenize the examples."""
    from cpo_ray.data.examples import needs_ray, prepare_examples
    from cpo_ray.data.sources import fingerprint

    config = run.config.data
    files = fingerprint(config.files, config.source) if config.files else None

    def build(out: Path) -> Summary:
        if needs_ray(config):
            run.ray.ensure()
        return prepare_examples(run.config, out)

    inputs = {"seed": run.config.seed, "data": stage_inputs(config), "files": files}
    run.make("data", inputs | hash_directories(tokenizer=config.tokenizer.path), build)


def reference(run: Run) -> None:
    """Train the reference by MLE, from scratch or from a pretrained model."""
    from cpo_ray.training.models import initialize_model

    examples = run.need("data", "data")
    config, tokenizer = run.config.model, examples.path / "tokenizer"
    if config.path is not None:
        start = str(Path(config.path).resolve()) if Path(config.path).is_dir() else config.path
        made_from = {"model": config.path} | hash_directories(model_files=config.path)
        _train(run, "reference", run.config.reference, start, examples, made_from)
        return
    inputs = {"model": stage_inputs(config), "data": examples.fingerprint, "seed": run.config.seed}
    initial = run.make("models/initial", inputs, lambda out: initialize_model(config, tokenizer, run.config.seed, out))
    made_from = {"initial": initial.fingerprint}
    _train(run, "reference", run.config.reference, str(initial.path), examples, made_from)


def sampling(run: Run) -> None:
    """Make K - 1 negatives per prompt, score them under the reference, rank them."""
    from cpo_ray.sampling.groups import make_groups
    from cpo_ray.sampling.reranking import rank_again

    examples, reference_model = run.need("data", "data"), run.need("models/reference", "reference")
    rows = min(run.config.sampling.rows or run.config.data.train_rows, run.config.data.train_rows)

    stored = run.config.sampling.model_copy(update={"stream": False, "refresh_steps": None})
    inputs = _sampling_inputs(run, stored, examples, reference_model)

    def make(split: str, config: RunConfig, rows: int, inputs: dict[str, Any]) -> None:
        # What differs in the embedder alone differs in the ranks alone.
        like = run.find_like(f"groups/{split}", inputs, "sampling.embedder", "embedder")

        def build(out: Path) -> Summary:
            run.ray.ensure(sampling_needs(run.config))
            with bar("sampling", rows, "rows") as progress:
                if like is not None:
                    say("  only ranks: the same groups stand under another embedder")
                    return rank_again(config, like, reference_model.path, out, progress.advance)
                return make_groups(config, examples.path, reference_model.path, out, progress.advance, split=split)

        run.make(f"groups/{split}", inputs, build)

    if run.config.sampling.stream:
        say("  negatives are sampled while `cpo` trains (sampling.stream)")
    else:
        make("train", run.config, rows, inputs)
    held_out = run.config.training.validation_rows
    if held_out:
        fewer = run.config.model_copy(update={"sampling": run.config.sampling.model_copy(update={"rows": held_out})})
        make("validation", fewer, held_out, inputs | {"rows": held_out})


def cpo(run: Run) -> None:
    """Train the policy by CPO, from the reference, on groups that are there or are sampled meanwhile."""
    reference_model, streamed = run.need("models/reference", "reference"), run.config.sampling.stream
    rows = run.need("data", "data") if streamed else run.need("groups/train", "sampling")
    inputs = {"reference": reference_model.fingerprint, "objective": stage_inputs(run.config.objective)}
    training = run.config.training
    held_out = run.need("groups/validation", "sampling") if training.validation_rows else None
    if held_out is not None:
        inputs["validation"] = held_out.fingerprint
    stream = _stream(run, rows, reference_model) if streamed else None
    _train(
        run,
        "cpo",
        training,
        str(reference_model.path),
        rows,
        inputs | (stream.inputs if stream else {}),
        held_out,
        objective=run.config.objective,
        stream=stream,
    )


def mle(run: Run) -> None:
    """Continue MLE from the reference for as many steps, with PSS if configured: the baseline."""
    examples, reference_model = run.need("data", "data"), run.need("models/reference", "reference")
    inputs = {"reference": reference_model.fingerprint, "mle": stage_inputs(run.config.mle)}
    sampled = run.config.mle.scheduled_sampling
    _train(run, "mle", run.config.training, str(reference_model.path), examples, inputs, scheduled_sampling=sampled)


def merging(run: Run) -> None:
    """Average the weights of the MLE and the CPO model, once per alpha."""
    from cpo_ray.serving.merging import merge_models

    mle_model, cpo_model = run.need("models/mle", "mle"), run.need("models/cpo", "cpo")
    for alpha in run.config.merging.alphas:
        inputs = {"alpha": alpha, "mle": mle_model.fingerprint, "cpo": cpo_model.fingerprint}

        def build(out: Path, alpha: float = alpha) -> Summary:
            return merge_models(mle_model.path, cpo_model.path, alpha, out)

        run.make(f"models/{run.config.merging.model_name(alpha)}", inputs, build)


@dataclass(frozen=True)
class _Stream:
    """Sampling while training goes on: what it depends on, and what it is to each side."""

    inputs: dict[str, Any]
    needs: list[Bundle]
    open: Callable[[Path], Any]  # folder -> the stream, once Ray is there
    keep: Callable[
        [Any, str], None
    ]  # (stream, identity of the training) afterwards: the groups of some steps, as an artifact


def _stream(run: Run, examples: Artifact, reference_model: Artifact) -> _Stream:
    from cpo_ray.sampling.streaming import open_stream, write_recorded

    inputs = _sampling_inputs(run, run.config.sampling, examples, reference_model)
    training, seed = run.config.training, run.config.seed

    def order(rows: int) -> Callable[[int], list[int]]:
        from cpo_ray.training.batch_order import Batches

        return Batches(rows, training.prompts_per_step, seed).at

    def keep(stream: Any, identity: str) -> None:
        run.make("groups/train", {"streamed": inputs, "training": identity}, partial(write_recorded, stream))

    return _Stream(
        inputs={"sampling": inputs},
        needs=streaming_needs(run.config),
        open=lambda folder: open_stream(run.config, examples.path, reference_model.path, folder, order),
        keep=keep,
    )


def _sampling_inputs(
    run: Run, sampling: SamplingConfig, examples: Artifact, reference_model: Artifact
) -> dict[str, Any]:
    """What negatives, scores and ranks depend on."""
    from cpo_ray.sampling.negatives.registry import hash_kinds

    return {
        "seed": run.config.seed,
        "sampling": stage_inputs(sampling),
        "kinds": hash_kinds(sampling),
        "max_response_tokens": run.config.data.max_response_tokens,
        "on_bad_row": run.config.data.on_bad_row,
        "precision": run.config.training.precision,
        "data": examples.fingerprint,
        "reference": reference_model.fingerprint,
        **hash_directories(embedder=sampling.embedder),
    }


def _train(
    run: Run,
    stage: str,
    training: TrainingConfig,
    start: str,
    rows: Artifact,
    inputs: dict[str, Any],
    held_out: Artifact | None = None,
    *,
    objective: ObjectiveConfig | None = None,
    scheduled_sampling: ScheduledSamplingConfig | None = None,
    stream: _Stream | None = None,
) -> None:
    """One training: from the model `start`, on groups, or on the `train` split of examples with `validation` held out.

    stream: makes the groups meanwhile, from the examples `rows`.
    """
    inputs = {**inputs, "training": stage_inputs(training), "rows": rows.fingerprint, "seed": run.config.seed}
    identity = hashlib.sha256(canonical(inputs).encode()).hexdigest()[:12]
    checkpoints = run.root / "checkpoints" / f"{stage}-{identity}"
    told_to_end = threading.Event()

    def build(out: Path) -> Summary:
        run.ray.ensure(stream.needs if stream else training_needs(training, run.config.cluster))
        from cpo_ray.training.task import Task
        from cpo_ray.training.trainer import train_model

        groups = objective is not None
        validation = (held_out.path if held_out else None) if groups else rows.path / "validation"
        folder = run.root / "groups" / f".stream-{identity}"
        source = stream.open(folder) if stream else None
        task = Task(
            stage=stage,
            training=training,
            objective=objective,
            scheduled_sampling=scheduled_sampling,
            model=start,
            rows=None if stream else (rows.path if groups else rows.path / "train").resolve(),
            stream=source,
            validation=validation.resolve() if validation and training.validation_rows else None,
            seed=run.config.seed,
            cuda=run.config.cluster.gpus_per_worker > 0,
            threads=run.config.cluster.threads_per_worker,
            profile=run.root / "profiles" / stage if training.profile_steps else None,
        )
        if not checkpoints.exists():
            run.metrics.forget(stage)
            checkpoints.mkdir(parents=True)
        with bar(stage, training.steps, "steps") as progress, track(run.config, run.root, stage) as tracker:
            monitor = TrainingMonitor(run.metrics, stage, progress, tracker)
            summary = train_model(
                task, run.config.cluster, checkpoints, out, monitor.on_metrics, monitor.on_notice, told_to_end
            )
        if stream:
            stream.keep(source, identity)
            shutil.rmtree(folder)
        return summary

    run.metrics.turn_to(stage, checkpoints)
    run.make(f"models/{stage}", inputs, build)
    if told_to_end.is_set():
        raise Preempted(f"told to end: stage `{stage}` is finished; the same command goes on with the next")
