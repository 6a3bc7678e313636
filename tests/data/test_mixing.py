import json
from pathlib import Path
from typing import Any

import pytest

from cpo_ray.data.examples import needs_ray, prepare_examples
from cpo_ray.errors import ConfigError, DataError
from cpo_ray.stages.data import fingerprints
from tests.data.test_examples import configure, rows_of

SMALL = {"tokenizer": {"vocabulary_size": 300}}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """60 rows of one layout, 20 of another."""
    rows = {
        "a": [{"prompt": f"Name {n}.", "completion": f"It is {n}."} for n in range(60)],
        "b": [{"instruction": f"Add {n}.", "output": f"Sum {n}."} for n in range(20)],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return {name: str(tmp_path / f"{name}.jsonl") for name in rows}


def mixed(files: dict[str, str], out: Path, **weights: float) -> tuple[dict[str, Any], list[str]]:
    sources = [{"path": path} | ({"weight": weights[name]} if weights else {}) for name, path in files.items()]
    summary = prepare_examples(configure(sources=sources, **SMALL), out)
    prompts = [row["prompt"].split()[0] for row in rows_of(out, "train", "validation", "test")]
    return summary, prompts


def test_without_weights_every_row_is_used_once(files: dict[str, str], tmp_path: Path) -> None:
    summary, prompts = mixed(files, tmp_path / "out")
    assert (prompts.count("Name"), prompts.count("Add")) == (60, 20)
    assert "rows_left_out_by_weight" not in summary


@pytest.mark.parametrize(
    ("weights", "counts"),
    [({"a": 1, "b": 1}, (20, 20)), ({"a": 2, "b": 1}, (40, 20)), ({"a": 9, "b": 1}, (60, 6)), ({"a": 0.5, "b": 2}, (5, 20))],
)  # fmt: skip
def test_weights_are_shares_of_rows_that_are_not_repeated(
    weights: dict[str, float], counts: tuple[int, int], files: dict[str, str], tmp_path: Path
) -> None:
    summary, prompts = mixed(files, tmp_path / "out", **weights)
    assert (prompts.count("Name"), prompts.count("Add")) == counts
    assert summary.get("rows_left_out_by_weight", 0) == 80 - sum(counts)


def test_which_rows_a_weight_takes_does_not_depend_on_the_order_of_the_file(
    files: dict[str, str], tmp_path: Path
) -> None:
    mixed(files, tmp_path / "out", a=1, b=1)
    path = Path(files["a"])
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    mixed(files, tmp_path / "again", a=1, b=1)
    ids = [{row["id"] for row in rows_of(tmp_path / out, "train", "validation", "test")} for out in ("out", "again")]
    assert ids[0] == ids[1]


def test_a_weight_without_rows_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"weight 1 of .*b\.jsonl gives none of its 20 rows"):
        mixed(files, tmp_path / "out", a=100, b=1)


def test_the_files_of_all_sources_count(files: dict[str, str]) -> None:
    config = configure(sources=[{"path": path} for path in files.values()])
    (first,), (second,) = fingerprints(config.data)
    assert first != second
    assert not needs_ray(config.data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"path": "x.jsonl", "sources": [{"path": "y.jsonl"}]}, r"sources cannot be combined with path: x\.jsonl"),
        ({"source": "dolly", "sources": [{"path": "y.jsonl"}]}, "sources cannot be combined with source: dolly"),
        ({"sources": [{"path": "x", "weight": 1}, {"path": "y"}]}, "1 of 2 sources have a weight"),
        ({"sources": [{"path": "x", "weight": 0}]}, r"data\.sources\.0\.weight: Input should be greater than 0"),
        ({"sources": [{"pth": "x"}]}, r"unknown key `data\.sources\.0\.pth`; did you mean `data\.sources\.0\.path`"),
        ({"sources": [{"path": "x", "source": "text"}]}, r"data\.sources\.0\.source: Input should be 'auto'"),
        ({"path": "x", "source": "text", "subset": "y"}, "subset is for a dataset on the hub"),
    ],
)
def test_sources_that_do_not_fit_together_are_refused(data: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        configure(**data)
