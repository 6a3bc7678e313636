"""Stage `data` with tokenizers whose post-processors put special tokens around a text."""

import json

import pytest

from cpo_ray.artifacts import read_table
from cpo_ray.config import RunConfig
from cpo_ray.data.examples import prepare_examples
from cpo_ray.data.tokenization import train_tokenizer
from tests.data.test_tokenization import POST_PROCESSORS, TEXTS, with_post_processor

LIMIT = 16


@pytest.mark.parametrize("name", POST_PROCESSORS)
def test_a_cut_prompt_keeps_bos_and_the_end_of_the_text_and_meets_the_response_at_once(tmp_path, name):
    tokenizer = with_post_processor(train_tokenizer(TEXTS, 270), POST_PROCESSORS[name], tmp_path / "tokenizer")
    instructions = [f"Add {n} and {n + 3}." + " Then add it once more." * (n % 3) for n in range(9)]
    rows = [{"instruction": text, "response": "The sum is 7."} for text in instructions]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "source": "instructions",
        "path": str(tmp_path / "x.jsonl"),
        "train_rows": 8,
        "validation_rows": 0,
        "test_rows": 1,
        "max_prompt_tokens": LIMIT,
        "tokenizer": {"path": str(tmp_path / "tokenizer")},
    }
    summary = prepare_examples(RunConfig.model_validate({"name": "x", "data": data}), tmp_path / "out")
    assert summary["truncated_prompts"] > 3
    for row in (row for split in ("train", "test") for row in read_table(tmp_path / "out" / split).to_pylist()):
        leading = [tokenizer.bos_token_id] if "BOS" in name else []
        text = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        kept = text[max(0, len(text) - (LIMIT - len(leading))) :]
        assert row["prompt_ids"] == [*leading, *kept]
        assert row["response_ids"] == [
            *tokenizer("The sum is 7.", add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
