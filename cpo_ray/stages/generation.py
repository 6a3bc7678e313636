"""Stage `generation`: every model answers the same prompts through one endpoint."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from cpo_ray.artifacts import Artifact, Summary, read_table
from cpo_ray.cluster.resources import serving_resources
from cpo_ray.config import RunConfig
from cpo_ray.monitoring.console import say
from cpo_ray.monitoring.prometheus import measured_bar
from cpo_ray.stages.record import Output, Stage, StageRun


def evaluated_models(config: RunConfig) -> tuple[str, ...]:
    """The models that answer and are judged."""
    return config.evaluated_models


GENERATIONS = Output(
    "generations/{model}",
    reads=("data", "models/{model}"),
    keys=("generation", "seed", "data.max_response_tokens"),
    models=evaluated_models,
)


def generate(stage: StageRun) -> None:
    """Serve the models whose answers are missing or stale, and let each answer the prompts."""
    config, examples = stage.config.generation, stage.read("data")
    rows = read_table(examples.path / config.split).slice(0, config.rows).to_pylist()
    models = {name: stage.read(f"models/{name}") for name in evaluated_models(stage.config)}
    missing = {name: model for name, model in models.items() if not stage.is_current(GENERATIONS.named(name))}
    with _serve(stage, missing) as endpoint:
        for name in models:
            stage.make(GENERATIONS.named(name), partial(_answer, stage.config, rows, name, endpoint))


@contextlib.contextmanager
def _serve(stage: StageRun, models: dict[str, Artifact]) -> Iterator[Any]:
    """The endpoint of these models; None if there are none."""
    from cpo_ray.serving.app import serve_models
    from cpo_ray.training.adapter_merging import remove_left_over, whole_models

    if not models:
        yield None
        return
    config = stage.config
    stage.ray.ensure(serving_resources(config, len(models)))
    window = config.data.max_prompt_tokens + config.data.max_response_tokens
    gpus = config.serving.engine.tensor_parallel if config.cluster.uses_cuda else 0
    paths = {name: model.path for name, model in models.items()}
    bans = any(decoding.no_repeat_ngram for decoding in config.generation.decodings.values())
    serving = config.serving.model_copy(update={"no_repeat_ngram": bans or config.serving.no_repeat_ngram})
    with contextlib.ExitStack() as stack:
        scratch = stage.root / "generations"
        remove_left_over(scratch)
        folders = stack.enter_context(whole_models(paths, scratch, lambda line: say(f"  {escape(line)}")))
        with measured_bar("engines", len(models), "models") as progress:
            on_ready: Callable[[str], None] = lambda name: progress.advance(1, f"{name} is up")  # noqa: E731
            endpoint = stack.enter_context(serve_models(folders, serving, window, gpus, on_ready))
        yield endpoint


def _answer(config: RunConfig, rows: list[dict[str, Any]], name: str, endpoint: Any, out: Path) -> Summary:
    """One model's answers under every decoding."""
    from cpo_ray.evaluation.generation import generate_answers

    summary: Summary = {}
    with measured_bar(name, len(rows) * len(config.generation.decodings), "rows") as progress:
        for decoding, settings in config.generation.decodings.items():
            counts = generate_answers(
                url=endpoint.url,
                key=endpoint.key,
                model=name,
                examples=rows,
                decoding=settings,
                max_tokens=config.data.max_response_tokens,
                seed=config.seed,
                concurrency=config.generation.concurrency,
                out=out / f"{decoding}.jsonl",
                on_row=progress.advance,
            )
            summary |= {f"{decoding} {key}": value for key, value in counts.items()}
    return summary


GENERATION = Stage("generation", "serve every model and let it answer the same prompts", (GENERATIONS,), generate)
