"""What run directories hold, read for the report. Whatever a run that stopped early lacks is simply not there."""

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
from cpo_ray.report.method import name_base, name_method, name_source
from cpo_ray.report.staleness import Present, find_present

Rows = list[dict[str, Any]]
ByModel = dict[str, dict[str, Rows]]  # model -> decoding -> rows

EXAMPLE_GROUPS = 2
MERGED = re.compile(r"merged-(\d+(?:\.\d+)?)$")


@dataclass(frozen=True)
class Curve:
    """One training stage's metrics, by step."""

    train: Rows
    validation: Rows


@dataclass(frozen=True)
class Run:
    """Everything the report is made from. Empty or None is what the run directory does not hold."""

    root: Path
    label: str  # the run's name, or something longer where two runs of a report share it
    config: dict[str, Any]
    environment: dict[str, Any]
    curves: dict[str, Curve]  # stage -> curve
    manifests: dict[str, dict[str, Any]]  # artifact -> manifest
    kinds: dict[str, dict[str, Any]]  # candidate kind -> sampling statistics
    groups: Rows  # the first few, as examples
    categories: dict[str, str]  # test row -> category
    generations: ByModel
    verdicts: ByModel
    mauve: dict[str, dict[str, dict[str, Any]]]  # model -> decoding -> scores
    reward: dict[str, dict[str, dict[str, Any]]]  # the same of a reward model, where one was asked
    outdated: dict[str, str]  # what is left out -> what it was made from, made again since

    @property
    def setting(self) -> tuple[str, str]:
        """Where the prompts come from, and the model it starts from: within a setting, models may share a table."""
        return name_source(self.config), name_base(self.config)

    def method(self, model: str) -> str:
        """What a model of this run was trained by, in the paper's words."""
        return name_method(self.config, model)

    def judging(self, model: str, decoding: str) -> dict[str, Any]:
        """What the judging stage said of its verdicts: the judge's name and more, or nothing."""
        summary = self.manifests.get(f"verdicts/{model}", {}).get("summary") or {}
        judged = summary.get(decoding)
        return judged if isinstance(judged, dict) else {}

    @property
    def models(self) -> list[str]:
        """Models with answers, verdicts or scores: reference, mle, cpo, merged by alpha, then others."""
        return sorted({*self.generations, *self.verdicts, *self.mauve}, key=_model_order)

    @property
    def decodings(self) -> list[str]:
        """Decodings in the configuration's order; the first is the one that the summary shows."""
        there = {
            name for part in (self.generations, self.verdicts, self.mauve) for found in part.values() for name in found
        }
        known = [name for name in (self.config.get("generation") or {}).get("decodings") or {} if name in there]
        return known + sorted(there - set(known))

    @property
    def candidates(self) -> int | None:
        """K, or None where the configuration does not say."""
        negatives = (self.config.get("sampling") or {}).get("negatives")
        return 1 + sum(negatives.values()) if negatives else None


def alpha_of(model: str) -> float | None:
    """The weight of MLE in a model of the weight-space ensemble: cpo is 0, mle is 1."""
    merged = MERGED.match(model)
    return float(merged[1]) if merged else {"cpo": 0.0, "mle": 1.0}.get(model)


def read_runs(roots: Sequence[Path]) -> list[Run]:
    """Read run directories, each with a label of its own. Raises ArtifactError as `read_run` does, or for one given twice."""
    twice = [root for root, count in Counter(root.resolve() for root in roots).items() if count > 1]
    if twice:
        raise ArtifactError(f"the run directory {twice[0]} is given twice")
    runs = [read_run(root) for root in roots]
    names = Counter(run.label for run in runs)
    return [replace(run, label=f"{run.label} in {run.root}") if names[run.label] > 1 else run for run in runs]


def shared_decodings(runs: Sequence[Run]) -> list[str]:
    """Decodings of all runs, each once, in the first run's order."""
    return list(dict.fromkeys(name for run in runs for name in run.decodings))


def read_run(root: Path) -> Run:
    """Read a run directory: what its present configuration asks for, made from what is there now.

    Raises ArtifactError where it is not there, or a file in it is damaged (naming the file).
    """
    if not root.is_dir():
        raise ArtifactError(f"no run directory {root}. `cpo-ray run CONFIG` makes one.")
    groups = root / "groups" / "train"
    config, manifests = read_object(root / "config.json"), _read_manifests(root)
    present = find_present(config, manifests)
    return Run(
        root=root,
        label=str(config.get("name") or root.resolve().name),
        config=config,
        environment=read_object(root / "environment.json"),
        curves=_read_curves(root / "metrics.jsonl"),
        manifests={
            name: manifest
            for name, manifest in manifests.items()
            if present.asks_for(name) and name not in present.outdated
        },
        kinds=read_object(groups / "stats.json"),
        groups=_read_first(groups),
        categories=_read_categories(root / "data"),
        generations=_read_answers(root / "generations", Generation.__required_keys__, present),
        verdicts=_read_answers(root / "verdicts", Verdict.__required_keys__, present),
        mauve=_read_scores(root / "mauve", present),
        reward=_read_scores(root / "reward", present),
        outdated=dict(present.outdated),
    )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} holds no JSON object")
    return value


def _model_order(model: str) -> tuple[int, float, str]:
    merged = MERGED.match(model)
    first = {"reference": 0, "mle": 1, "cpo": 2}
    return (3, float(merged[1]), model) if merged else (first.get(model, 4), 0.0, model)


def _read_curves(path: Path) -> dict[str, Curve]:
    """Rows by stage. A step that a restart repeated counts once: its last row."""
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
        stage: Curve([train[step] for step in sorted(train)], [validation[step] for step in sorted(validation)])
        for stage, (train, validation) in stages.items()
    }


def _read_manifests(root: Path) -> dict[str, dict[str, Any]]:
    """Manifests of finished artifacts, oldest first. A folder that begins with a dot is not finished."""
    found = {}
    for path in [*root.glob("*/manifest.json"), *root.glob("*/*/manifest.json")]:
        name = path.parent.relative_to(root)
        if not any(part.startswith(".") for part in name.parts) and name.parts[0] != "report":
            found[name.as_posix()] = read_object(path)
    return dict(sorted(found.items(), key=lambda item: (str(item[1].get("created", "")), item[0])))


def _read_first(folder: Path) -> Rows:
    """The first groups of the first shard."""
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


def _read_answers(folder: Path, keys: AbstractSet[str], present: Present) -> ByModel:
    """<model>/<decoding>.jsonl, by model and decoding."""
    answers: ByModel = {}
    for path in sorted(folder.glob("*/*.jsonl")):
        model, decoding = path.parent.name, path.stem
        if not model.startswith(".") and present.counts(folder.name, model, decoding):
            rows = read_jsonl(path)
            for number, row in enumerate(rows, 1):
                lacking = sorted(keys - row.keys()) if isinstance(row, dict) else sorted(keys)
                if lacking:
                    raise ArtifactError(f"{path}:{number} lacks {', '.join(lacking)}")
                if row.get("outcome", INVALID) not in {*SCORES, INVALID}:
                    raise ArtifactError(f"{path}:{number}: outcome {row['outcome']!r} is none of {[*SCORES, INVALID]}")
            answers.setdefault(model, {})[decoding] = rows
    return answers


def _read_scores(folder: Path, present: Present) -> dict[str, dict[str, dict[str, Any]]]:
    """scores.json, by model and decoding."""
    found = {
        model: {name: score for name, score in scores.items() if present.counts(folder.name, model, name)}
        for model, scores in read_object(folder / "scores.json").items()
    }
    return {model: scores for model, scores in found.items() if scores}
