"""Contrastive Preference Optimization (Feng et al.) as a distributed system on Ray.

The Python API: small, stable, and nothing heavy is imported before a function runs. For the losses in a training loop of
one's own, see `cpo_ray.objective`, which needs neither Ray nor vLLM.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ray.data import Dataset

    from cpo_ray.config import RunConfig

__version__ = "0.1.0"
__all__ = ["WinRate", "compare", "load_config", "make_groups", "merge", "run", "win_rate"]

PathLike = str | Path
PARTS = ("objective", "stages")  # sub-packages that `import cpo_ray` finds without loading them


SOURCES = ("source", "path", "sources", "subset", "split", "revision", "fields")


def __getattr__(name: str) -> Any:
    if name not in PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


class WinRate(NamedTuple):
    """A win rate, ties as half, and its 95% interval; each in [0, 1]."""

    rate: float
    low: float
    high: float


def load_config(config: PathLike, *overrides: str) -> "RunConfig":
    """Read a run's YAML file, or a shipped configuration by its name: `load_config("demo", "training.steps=10")`.

    overrides: `dotted.key=value`, as with `--set`. Raises ConfigError for an unknown key or a value out of bounds.
    """
    from cpo_ray.config.loading import load_config as load
    from cpo_ray.config.shipped import find_config

    return load(find_config(Path(config)), overrides)


def run(
    config: "RunConfig",
    run_dir: PathLike | None = None,
    *,
    first: str | None = None,
    last: str | None = None,
    accept_changes: bool = False,
) -> Path:
    """Run the stages from `first` to `last` (default: all) and return the run's directory. The same call continues a run.

    run_dir: default `runs/<name>`, or `<name>` in CPO_RAY_RUNS. accept_changes: redo in place what changed settings affect.
    Raises a CpoRayError for anything that the user can act on.
    """
    from cpo_ray.commands.placement import place_run
    from cpo_ray.pipeline import check_stages, run_pipeline
    from cpo_ray.run_directory import run_directory

    check_stages(first, last)
    root = run_directory(config.name, None if run_dir is None else Path(run_dir))
    command = f"with run_dir={root}"
    run_pipeline(place_run(config), root, first=first, last=last, accept_changes=accept_changes, command=command)
    return root


def make_groups(rows: "Dataset | Iterable[Mapping[str, str]]", out: PathLike, config: "RunConfig") -> "Dataset":
    """Make groups of one's own rows: the truth, its negatives, their scores under the reference, and ranks.

    rows: a Ray Dataset or an iterable with `prompt` and `response`. out: a run directory, in which the stages `data`,
    `reference` and `sampling` run. config: as for `run`; its data source is replaced. Returns a Ray Dataset with one group per
    row (`cpo_ray.records.GROUP_SCHEMA`). Raises a CpoRayError for anything that the user can act on.
    """
    import ray.data

    from cpo_ray.artifacts import write_rows
    from cpo_ray.config.loading import parse_config

    root = Path(out)
    source = root.with_name(f"{root.name}-rows.jsonl")
    root.parent.mkdir(parents=True, exist_ok=True)
    found = rows.iter_rows() if isinstance(rows, ray.data.Dataset) else rows
    write_rows(source, [{"prompt": row["prompt"], "response": row["response"]} for row in found])
    tree = config.model_dump(mode="json", exclude_unset=True)
    fields = {"instruction": "prompt", "context": None, "response": "response", "category": None}
    data = {key: value for key, value in tree.get("data", {}).items() if key not in SOURCES}
    tree["data"] = data | {"source": "instructions", "path": str(source), "fields": fields}
    run(parse_config(tree, "config"), root, last="sampling")
    return ray.data.read_parquet([str(file) for file in sorted((root / "groups" / "train").glob("*.parquet"))])


def merge(
    models: Mapping[PathLike, float] | Sequence[tuple[PathLike, float]], out: PathLike, *, dtype: str | None = None
) -> dict[str, Any]:
    """Average the weights of models: directory -> weight, weights that sum to 1. The first one gives config and tokenizer.

    Writes the Hugging Face directory `out` and returns its numbers of tensors, parameters and shards. dtype: for models of
    different dtypes, `bfloat16`, `float16` or `float32`. Raises ArtifactError for models that do not fit together.
    """
    from cpo_ray.serving.merging import average_models

    pairs = models.items() if isinstance(models, Mapping) else models
    return average_models([(Path(model), weight) for model, weight in pairs], Path(out), dtype)


def compare(
    candidates: PathLike,
    references: PathLike,
    judge: Mapping[str, Any],
    out: PathLike,
    *,
    key: str = "",
    seed: int = 17,
) -> dict[str, Any]:
    """Judge two JSONL files of answers, rows `id`, `prompt` and `response`, and return the summary with its win rate.

    judge: keys of the section `judge` of a configuration, at least `url` and `model` of an OpenAI-compatible API. key: its
    API key. out: gets verdicts.jsonl, summary.json and the judge's answers, so that the same call repeats no request.
    Raises ConfigError for a key of `judge` that does not exist, DataError for rows that do not fit together, ServiceError if
    the judge fails.
    """
    from cpo_ray.commands.judge import judge_config
    from cpo_ray.evaluation.comparison import read_comparison

    comparison = read_comparison(Path(candidates), Path(references), judge_config(**judge), seed)
    return comparison.run(key, Path(out), lambda: None)


def win_rate(outcomes: Sequence[str]) -> WinRate:
    """The win rate of outcomes `win`, `tie`, `loss` and `invalid` (left out), with Tango's score interval.

    Raises ValueError if no valid outcome is left.
    """
    from cpo_ray.evaluation.statistics import win_rate_interval

    return WinRate(*win_rate_interval(outcomes))
