"""Read run directories for the report. Parts that a run does not have yet are left empty."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cpo_ray.artifacts import read_jsonl
from cpo_ray.errors import ArtifactError
from cpo_ray.evaluation.statistics import INVALID, SCORES
from cpo_ray.records import Generation, Verdict
from cpo_ray.report.method import name_base, name_method, name_source, ranked_answers
from cpo_ray.report.rounds import join_rounds
from cpo_ray.report.staleness import CurrentResults, find_current_results

JsonRows = list[dict[str, Any]]
RowsByModel = dict[str, dict[str, JsonRows]]  # model -> decoding -> rows

EXAMPLE_GROUPS = 2
MERGED = re.compile(r"merged-(\d+(?:\.\d+)?)$")


@dataclass(frozen=True)
class Curve:
    """One training stage's metrics, by step."""

    train: JsonRows
    validation: JsonRows


@dataclass(frozen=True)
class RunContents:
    """Everything in a run directory that the report needs. What the directory does not have is empty or None."""

    root: Path
    label: str  # the run's name, with its directory if two runs of a report have the same name
    config: dict[str, Any]
    environment: dict[str, Any]
    curves: dict[str, Curve]  # stage -> curve
    manifests: dict[str, dict[str, Any]]  # artifact -> manifest
    kinds: dict[str, dict[str, Any]]  # candidate kind -> sampling statistics
    groups: JsonRows  # the first few, as examples
    categories: dict[str, str]  # test row -> category
    generations: RowsByModel
    verdicts: RowsByModel
    mauve: dict[str, dict[str, dict[str, Any]]]  # model -> decoding -> scores
    reward: dict[str, dict[str, dict[str, Any]]]  # the same for the reward model, if the run has one
    texts: dict[str, dict[str, Any]]  # the same for the text metrics: text_scores.TextScores
    outdated: dict[str, str]  # stale artifact, left out -> the artifact it was made from, which has changed since

    @property
    def setting(self) -> tuple[str, str]:
        """(source of the prompts, base model). Models with the same setting can be in one table."""
        return name_source(self.config), name_base(self.config)

    def method(self, model: str) -> str:
        """Return the training method of a model of this run, by its name in the paper."""
        return name_method(self.config, model)

    def judging(self, model: str, decoding: str) -> dict[str, Any]:
        """Return the judging stage's summary of these verdicts (the judge's name and more), or an empty dict."""
        summary = self.manifests.get(f"verdicts/{model}", {}).get("summary") or {}
        judged = summary.get(decoding)
        return judged if isinstance(judged, dict) else {}

    @property
    def models(self) -> list[str]:
        """Models with answers, verdicts or scores: reference, mle, cpo, merged by alpha, then others."""
        return sorted({*self.generations, *self.verdicts, *self.mauve}, key=_model_order)

    @property
    def decodings(self) -> list[str]:
        """Decodings in the order of the configuration. The summary shows the first."""
        present = {
            name for part in (self.generations, self.verdicts, self.mauve) for found in part.values() for name in found
        }
        configured = [name for name in (self.config.get("generation") or {}).get("decodings") or {} if name in present]
        return configured + sorted(present - set(configured))

    @property
    def candidates(self) -> int | None:
        """K, or None if the configuration does not define it: prompts may have fewer ranked answers than it allows."""
        negatives = (self.config.get("sampling") or {}).get("negatives")
        return 1 + sum(negatives.values()) if negatives and not ranked_answers(self.config) else None


def alpha_of(model: str) -> float | None:
    """Return the weight of MLE in a model of the weight-space ensemble: 0 for cpo, 1 for mle, None for other models."""
    merged = MERGED.match(model)
    return float(merged[1]) if merged else {"cpo": 0.0, "mle": 1.0}.get(model)


def read_runs(roots: Sequence[Path]) -> list[RunContents]:
    """Read run directories and give each a unique label.

    Raises ArtifactError like `read_run`, and for a directory that is given twice.
    """
    repeated = [root for root, count in Counter(root.resolve() for root in roots).items() if count > 1]
    if repeated:
        raise ArtifactError(f"the run directory {repeated[0]} is given twice")
    runs = [read_run(root) for root in roots]
    names = Counter(run.label for run in runs)
    return [replace(run, label=f"{run.label} in {run.root}") if names[run.label] > 1 else run for run in runs]


def all_decodings(runs: Sequence[RunContents]) -> list[str]:
    """Return the decodings of all runs without duplicates, in the order of the first run."""
    return list(dict.fromkeys(name for run in runs for name in run.decodings))


def read_run(root: Path) -> RunContents:
    """Read the results of a run's current configuration from its directory, without stale artifacts.

    Raises ArtifactError if the directory does not exist, or for a damaged file in it, with the name of the file.
    """
    if not root.is_dir():
        raise ArtifactError(f"no run directory {root}. `cpo-ray run CONFIG` creates one.")
    groups = root / "groups" / "train"
    config, manifests = read_object(root / "config.json"), _read_manifests(root)
    curves = _read_curves(root / "metrics.jsonl")
    current = find_current_results(config, manifests)
    return RunContents(
        root=root,
        label=str(config.get("name") or root.resolve().name),
        config=config,
        environment=read_object(root / "environment.json"),
        curves={stage: Curve(*rows) for stage, rows in join_rounds(curves, config, manifests).items()},
        manifests={
            name: manifest
            for name, manifest in manifests.items()
            if current.is_configured(name) and name not in current.outdated
        },
        kinds=read_object(groups / "stats.json"),
        groups=_read_example_groups(groups),
        categories=_read_categories(root / "data"),
        generations=_read_answers(root / "generations", Generation.__required_keys__, current),
        verdicts=_read_answers(root / "verdicts", Verdict.__required_keys__, current),
        mauve=_read_scores(root / "mauve", current),
        reward=_read_scores(root / "reward", current),
        texts=_read_text_scores(root / "text_metrics", current),
        outdated=dict(current.outdated),
    )


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} is not a JSON object")
    return value


def _model_order(model: str) -> tuple[int, float, str]:
    merged = MERGED.match(model)
    first = {"reference": 0, "mle": 1, "cpo": 2}
    return (3, float(merged[1]), model) if merged else (first.get(model, 4), 0.0, model)


def _read_curves(path: Path) -> dict[str, tuple[JsonRows, JsonRows]]:
    """Read the metrics of training and validation by stage. A step that a restart repeated counts once, with its last row."""
    stages: dict[str, tuple[dict[int, Any], dict[int, Any]]] = {}
    for number, row in enumerate(read_jsonl(path) if path.is_file() else [], 1):
        try:
            stage, step = row["stage"], row["step"]
        except (KeyError, TypeError):
            raise ArtifactError(f"{path}:{number} has no stage or step") from None
        train, validation = stages.setdefault(stage, ({}, {}))
        if "validation" in row:
            validation[step] = {"step": step, **row["validation"]}
        else:
            train[step] = row
    return {
        stage: ([train[step] for step in sorted(train)], [validation[step] for step in sorted(validation)])
        for stage, (train, validation) in stages.items()
    }


def _read_manifests(root: Path) -> dict[str, dict[str, Any]]:
    """Read the manifests of finished artifacts, oldest first. Directories with a leading dot are not finished."""
    found = {}
    for path in [*root.glob("*/manifest.json"), *root.glob("*/*/manifest.json")]:
        name = path.parent.relative_to(root)
        if not any(part.startswith(".") for part in name.parts) and name.parts[0] != "report":
            found[name.as_posix()] = read_object(path)
    return dict(sorted(found.items(), key=lambda item: (str(item[1].get("created", "")), item[0])))


def _read_example_groups(folder: Path) -> JsonRows:
    """Read the first groups of the first shard."""
    for shard in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=EXAMPLE_GROUPS):
            return batch.to_pylist()
    return []


def _read_categories(data: Path) -> dict[str, str]:
    categories: dict[str, str] = {}
    for path in [*data.glob("test.parquet"), *sorted(data.glob("test/*.parquet"))]:
        table = pq.read_table(path, columns=["id", "category"])
        categories.update(zip(table["id"].to_pylist(), table["category"].to_pylist(), strict=True))
    return categories


def _read_answers(folder: Path, keys: AbstractSet[str], current: CurrentResults) -> RowsByModel:
    """Read <model>/<decoding>.jsonl, by model and decoding."""
    answers: RowsByModel = {}
    for path in sorted(folder.glob("*/*.jsonl")):
        model, decoding = path.parent.name, path.stem
        if not model.startswith(".") and current.includes(folder.name, model, decoding):
            rows = read_jsonl(path)
            for number, row in enumerate(rows, 1):
                lacking = sorted(keys - row.keys()) if isinstance(row, dict) else sorted(keys)
                if lacking:
                    raise ArtifactError(f"{path}:{number} lacks {', '.join(lacking)}")
                if row.get("outcome", INVALID) not in {*SCORES, INVALID}:
                    raise ArtifactError(f"{path}:{number}: outcome {row['outcome']!r} is none of {[*SCORES, INVALID]}")
            answers.setdefault(model, {})[decoding] = rows
    return answers


def _read_scores(folder: Path, current: CurrentResults) -> dict[str, dict[str, dict[str, Any]]]:
    """Read scores.json, by model and decoding."""
    return _current_scores(folder.name, read_object(folder / "scores.json"), current)


def _read_text_scores(folder: Path, current: CurrentResults) -> dict[str, dict[str, dict[str, Any]]]:
    """Read <model>/scores.json, by model and decoding."""
    paths = [path for path in sorted(folder.glob("*/scores.json")) if not path.parent.name.startswith(".")]
    return _current_scores(folder.name, {path.parent.name: read_object(path) for path in paths}, current)


def _current_scores(
    stage: str, found: dict[str, dict[str, dict[str, Any]]], current: CurrentResults
) -> dict[str, dict[str, dict[str, Any]]]:
    kept = {
        model: {name: score for name, score in scores.items() if current.includes(stage, model, name)}
        for model, scores in found.items()
    }
    return {model: scores for model, scores in kept.items() if scores}
