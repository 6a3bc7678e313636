"""Examples of the real Dolly, which lies outside the repository."""

from pathlib import Path
from typing import Any

import pytest

from cpo_ray.config import RunConfig
from cpo_ray.data.corpus import Corpus, load_corpus
from cpo_ray.data.examples import prepare_examples
from cpo_ray.data.splits import split_prompts
from cpo_ray.data.tokenization import encode, load_tokenizer
from cpo_ray.errors import DataError
from cpo_ray.records import end_response
from tests.data.test_examples import configure, rows_of

SHARED = Path(__file__).parents[2] / "../shared/data"
SEED = 17


def real_dolly(**data: Any) -> RunConfig:
    if not (SHARED / "dolly").is_dir() or not (SHARED / "tokenizers").is_dir():
        pytest.skip(f"{SHARED} is absent")
    return configure(
        source="dolly",
        path=SHARED / "dolly/databricks-dolly-15k.jsonl",
        tokenizer={"path": str(SHARED / "tokenizers")},
        validation_rows=0,
        **data,
    )


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Every row, split as in the paper."""
    return load_corpus(real_dolly(train_rows=7505, test_rows=7506).data, SEED)


def test_real_dolly_splits_as_in_the_paper(corpus: Corpus) -> None:
    splits = split_prompts(corpus.prompts, {"train": 7505, "validation": 0, "test": 7506}, SEED)
    assert (len(splits["train"]), len(splits["test"])) == (7505, 7506)
    assert len(set(corpus.ids)) == len(corpus.rows) == 15011
    train, test = ({corpus.prompts[row] for row in splits[name]} for name in ("train", "test"))
    assert train.isdisjoint(test)


def test_real_dolly_with_the_real_tokenizer(tmp_path: Path) -> None:
    config = real_dolly(train_rows=400, test_rows=300)
    summary = prepare_examples(config, tmp_path)
    rows = rows_of(tmp_path, "train", "test")
    assert (len(rows), summary["unused_rows"]) == (700, 15011 - 700)
    assert max(len(row["prompt_ids"]) for row in rows) == config.data.max_prompt_tokens
    assert max(len(row["response_ids"]) for row in rows) == config.data.max_response_tokens
    cut = [row["response_ids"] for row in rows if row["response_ids"][-1] != 50256]
    assert {len(ids) for ids in cut} == {config.data.max_response_tokens}
    assert len(cut) == summary["truncated_responses"] == summary["responses_without_eos"]
    assert ["data.max_response_tokens 64" in line for line in summary["warnings"]] == [True]


def test_real_dolly_responses_that_are_cut_have_no_eos(corpus: Corpus) -> None:
    texts = [row.response for row in corpus.rows]
    encoded = encode(load_tokenizer(str(SHARED / "tokenizers")), texts, special=False)
    for limit, share in ((256, 5.0), (64, 37.6)):
        responses = [end_response(ids, 50256, limit) for ids in encoded]
        cut = [ids for ids in responses if ids[-1] != 50256]
        assert round(100 * len(cut) / len(responses), 1) == share
        assert {len(ids) for ids in cut} == {limit}
        assert max(map(len, responses)) == limit


def test_real_dolly_is_one_row_too_few_for_a_validation_split(tmp_path: Path) -> None:
    config = real_dolly(train_rows=7505, test_rows=7507)
    with pytest.raises(DataError, match=r"15011 usable rows, but .* = 15012: 1 too few"):
        prepare_examples(config, tmp_path)
