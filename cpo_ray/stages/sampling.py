"""Stage `sampling`: negatives for each prompt, their reference log-probs and ranks."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import SELECTED, Summary, hash_directories
from cpo_ray.cluster.resources import sampling_resources, scoring_resources
from cpo_ray.config import RunConfig, SamplingConfig
from cpo_ray.monitoring.console import say
from cpo_ray.monitoring.prometheus import measured_bar
from cpo_ray.stages.record import Output, Stage, StageRun

GROUP_KEYS = ("seed", "sampling", "data.max_response_tokens", "data.on_bad_row", "training.precision")
GROUP_READS = ("data", "models/reference")
STREAM_KEYS = ("sampling.stream", "sampling.refresh_steps", "sampling.refresh_reference")
EMBEDDER = ("config.sampling.embedder", "also.embedder")  # groups that differ in these alone differ in ranks alone


def is_streamed(config: RunConfig) -> bool:
    """Whether negatives are sampled while `cpo` trains."""
    return config.sampling.stream


def has_validation(config: RunConfig) -> bool:
    """Whether `cpo` measures its loss on held-out groups."""
    return config.training.validation_rows > 0


TRAIN_GROUPS = Output(
    "groups/train",
    reads=GROUP_READS,
    keys=GROUP_KEYS,
    ignored=STREAM_KEYS,
    when=lambda config: not is_streamed(config),
)
VALIDATION_GROUPS = Output(
    "groups/validation",
    reads=GROUP_READS,
    keys=(*GROUP_KEYS, "training.validation_rows"),
    ignored=STREAM_KEYS,
    when=has_validation,
)


def sample_groups(stage: StageRun) -> None:
    """Make K - 1 negatives per prompt, score all K under the reference, rank them."""
    config = stage.config
    if is_streamed(config):
        say("  negatives are sampled while `cpo` trains (sampling.stream)")
    else:
        make_split(stage, TRAIN_GROUPS.name, "train", config, "models/reference")
    if has_validation(config):
        make_split(stage, VALIDATION_GROUPS.name, "validation", config, "models/reference")


def training_rows(config: RunConfig, data: Summary) -> int:
    """Rows that become groups. data: the summary of stage `data`, which has counted the rows of a share."""
    rows = data["train_rows"] if config.data.has_shares else config.data.rows("train")
    return min(config.sampling.rows or rows, rows)


def outside_files(sampling: SamplingConfig) -> dict[str, Any]:
    """Hashes of the files outside the run that groups depend on: custom kinds of negatives and an embedder's directory."""
    from cpo_ray.sampling.negatives.registry import hash_kinds

    return {"kinds": hash_kinds(sampling)} | hash_directories(embedder=sampling.embedder)


def make_split(
    stage: StageRun, name: str, split: str, config: RunConfig, reference: str, also: Mapping[str, Any] | None = None
) -> None:
    """Make the groups `name` of a split, or new ranks for groups that exist under another embedder.

    config: the run's, with the seed of the draws. reference: the model that negatives are sampled from and scored under. also:
    what the groups depend on besides the run's configuration.
    """
    from cpo_ray.sampling.groups import PhaseHooks, make_groups
    from cpo_ray.sampling.reranking import rerank

    examples, model = stage.read("data"), stage.read(reference)
    rows = training_rows(config, examples.manifest.summary)
    if split == "validation":
        rows = config.training.validation_rows
        config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"rows": rows})})
    also = outside_files(config.sampling) | dict(also or {})
    similar = stage.find_similar(name, also, *EMBEDDER)
    if similar is not None and similar.manifest.part_fingerprint(SELECTED) is None:  # made by an older version
        similar = None

    def build(out: Path) -> Summary:
        stage.ray.ensure(sampling_resources(config))
        passes = 2 if config.sampling.in_phases and config.sampling.samples else 1  # in phases each row counts twice
        with measured_bar("sampling", passes * rows, "rows") as progress:
            if similar is not None:
                say("  only ranks: the same groups exist under another embedder")
                return rerank(config, similar, model.path, out, progress.advance)
            hooks = PhaseHooks(
                partial(progress.advance, note="sampled"), lambda: stage.ray.ensure(scoring_resources(config))
            )
            return make_groups(config, examples.path, model.path, out, progress.advance, split=split, phases=hooks)

    stage.make(name, build, also)


SAMPLING = Stage(
    "sampling", "make negatives for each prompt, score and rank them", (TRAIN_GROUPS, VALIDATION_GROUPS), sample_groups
)
