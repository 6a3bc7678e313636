from typing import Any

import pytest

from cpo_ray.config import DataConfig
from cpo_ray.config.loading import parse_config
from cpo_ray.config.split_sizes import count_rows, takes_all
from cpo_ray.errors import ConfigError


def sizes(**data: Any) -> dict[str, float]:
    return parse_config({"name": "x", "data": data}, "x.yaml").data.sizes


def test_rows_of_a_file_are_split_by_shares_unless_a_size_is_given() -> None:
    assert sizes(path="x.jsonl") == {"train": 0.8, "validation": 0.1, "test": 0.1}
    assert sizes(path="x.jsonl", test_rows=7) == {"train": 3000, "validation": 200, "test": 7}
    passages = {"tokenizer": {"path": "t"}, "passages": {"tokens": 64}}
    assert sizes() == sizes(source="text", path="x", **passages) == {"train": 3000, "validation": 200, "test": 500}


def test_a_resolved_configuration_stays_the_same() -> None:
    data = DataConfig(path="x.jsonl")
    assert data.source == "auto"
    assert DataConfig.model_validate(data.model_dump()) == data


@pytest.mark.parametrize(
    ("given", "total", "counts"),
    [
        ((0.8, 0.1, 0.1), 100, (80, 10, 10)),
        ((0.8, 0.1, 0.1), 99, (81, 9, 9)),  # what rounding leaves is for training
        ((0.8, 0.1, 0.1), 3, (1, 1, 1)),
        ((0.5, 0.1, 0.1), 99, (49, 9, 9)),
        ((0.9, 0, 0.1), 30, (27, 0, 3)),
        ((0.5, 10, 20), 100, (50, 10, 20)),
        ((70, 10, 20), 1000, (70, 10, 20)),
        ((0.7, 0.2, 0.1), 10, (7, 2, 1)),
    ],
)
def test_shares_become_rows(given: tuple[float, ...], total: int, counts: tuple[int, ...]) -> None:
    names = ("train", "validation", "test")
    named = dict(zip(names, given, strict=True))
    assert tuple(count_rows(named, total).values()) == counts
    assert takes_all(named) == (sum(given) >= 0.999 and max(given) < 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"path": "x", "train_rows": 0}, "data.train_rows: at least one row is needed, got 0"),
        ({"path": "x", "test_rows": -1}, "data.test_rows: a number of rows, or a share of all rows between 0 and 1"),
        ({"path": "x", "train_rows": 1.5}, "a number of rows, or a share"),
        ({"path": "x", "train_rows": 0.9, "validation_rows": 0.2}, "train 0.9 [+] validation 0.2 = 1.1, are more"),
        ({"train_rows": 0.9}, "a share of the rows of source: synthetic is unknown"),
    ],
)  # fmt: skip
def test_sizes_that_make_no_sense_are_refused(data: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        sizes(**data)


def test_a_share_is_no_number_of_rows_before_the_rows_are_counted() -> None:
    data = DataConfig(path="x.jsonl")
    assert data.has_shares
    with pytest.raises(ValueError, match=r"data\.train_rows 0\.8 is a share of rows that are not counted yet"):
        data.rows("train")
    counted = data.with_counts(50)
    assert (counted.rows("train"), counted.rows("test"), counted.has_shares) == (40, 5, False)
