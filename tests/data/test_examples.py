import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cpo_ray.artifacts import Summary, read_jsonl, read_table
from cpo_ray.config import RunConfig
from cpo_ray.config.loading import parse_config
from cpo_ray.data.corpus import load_corpus
from cpo_ray.data.examples import needs_ray, prepare_examples
from cpo_ray.data.synthetic import is_right
from cpo_ray.errors import ConfigError, DataError
from cpo_ray.records import EXAMPLE_SCHEMA

SPLITS = ("train", "validation", "test")
SMALL = {"train_rows": 300, "validation_rows": 40, "test_rows": 60, "tokenizer": {"vocabulary_size": 512}}


def configure(**data: Any) -> RunConfig:
    if "path" in data:
        data["path"] = str(data["path"])
    return parse_config({"name": "test", "data": data}, "test")


def write_dolly(path: Path, records: list[dict[str, str]]) -> Path:
    whole = [{"context": "", "category": "qa", **record} for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in whole))
    return path


def rows_of(out: Path, *splits: str) -> list[dict[str, Any]]:
    return [row for split in splits for row in read_table(out / split).to_pylist()]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    out = tmp_path_factory.mktemp("synthetic")
    return out, prepare_examples(configure(**SMALL), out)


def test_files_have_the_rows_and_the_schema(synthetic: tuple[Path, Summary]) -> None:
    out, summary = synthetic
    for split in SPLITS:
        assert read_table(out / split).schema.equals(EXAMPLE_SCHEMA)
        assert read_table(out / split).num_rows == summary[f"{split}_rows"] == SMALL[f"{split}_rows"]
    assert not (out / "quarantine.jsonl").exists()


def test_splits_are_disjoint_and_ids_unique(synthetic: tuple[Path, Summary]) -> None:
    rows = rows_of(synthetic[0], *SPLITS)
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == len(rows) == 400
    assert all(len(row["id"]) == 16 and int(row["id"], 16) >= 0 for row in rows)


def test_saved_tokenizer_decodes_every_example(synthetic: tuple[Path, Summary]) -> None:
    out, summary = synthetic
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    assert tokenizer.is_fast
    assert len(tokenizer) == summary["vocabulary"]
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id is not None
    for row in rows_of(out, *SPLITS):
        assert tokenizer.decode(row["prompt_ids"]) == row["prompt"]
        *response_ids, last = row["response_ids"]
        assert last == tokenizer.eos_token_id
        assert tokenizer.decode(response_ids) == row["response"]


def test_same_configuration_gives_the_same_bytes(synthetic: tuple[Path, Summary], tmp_path: Path) -> None:
    prepare_examples(configure(**SMALL), tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) >= 6
    for file in files:
        assert (tmp_path / file).read_bytes() == (synthetic[0] / file).read_bytes(), file


def test_answers_cover_every_split_and_judge_the_gold_right(synthetic: tuple[Path, Summary]) -> None:
    key = json.loads((synthetic[0] / "answers.json").read_text())
    rows = rows_of(synthetic[0], *SPLITS)
    assert key["answers"].keys() == {row["id"] for row in rows}
    assert key["filler"] == sorted(key["filler"])
    assert all(is_right(row["response"], key["answers"][row["id"]], key["filler"]) for row in rows)


def test_synthetic_lengths_fit_a_small_model(synthetic: tuple[Path, Summary]) -> None:
    rows = rows_of(synthetic[0], *SPLITS)
    assert max(len(row["prompt_ids"]) for row in rows) <= 90
    assert min(len(row["response_ids"]) for row in rows) >= 5
    assert synthetic[1]["truncated_prompts"] == synthetic[1]["truncated_responses"] == 0


def test_long_texts_are_cut_by_the_stated_rule_and_counted(tmp_path: Path) -> None:
    texts = [(f"question {n}", f"answer {n}") for n in range(8)] + [("word " * 50 + "end", "yes " * 50)]
    path = write_dolly(tmp_path / "d.jsonl", [{"instruction": a, "response": b} for a, b in texts])
    config = configure(source="dolly", path=path, train_rows=8, validation_rows=0, test_rows=1)
    limited = config.model_copy(
        update={"data": config.data.model_copy(update={"max_prompt_tokens": 16, "max_response_tokens": 12})}
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    prepare_examples(
        config.model_copy(update={"data": config.data.model_copy(update={"max_prompt_tokens": 999})}), whole
    )
    summary = prepare_examples(limited, cut)
    assert (summary["truncated_prompts"], summary["truncated_responses"]) == (1, 1)
    for before, after in zip(rows_of(whole, "train", "test"), rows_of(cut, "train", "test"), strict=True):
        assert after["prompt"] == before["prompt"]
        assert after["response"] == before["response"]
        assert after["prompt_ids"] == before["prompt_ids"][-16:]
        is_cut = len(before["response_ids"]) > 12
        assert after["response_ids"] == (before["response_ids"][:12] if is_cut else before["response_ids"])


def test_texts_that_just_fit_are_not_counted(synthetic: tuple[Path, Summary], tmp_path: Path) -> None:
    rows = rows_of(synthetic[0], *SPLITS)
    prompts, responses = ([len(row[key]) for row in rows] for key in ("prompt_ids", "response_ids"))
    limits = {"max_prompt_tokens": max(prompts), "max_response_tokens": max(responses)}
    exact = prepare_examples(configure(**SMALL, **limits), tmp_path / "exact")
    assert (exact["truncated_prompts"], exact["truncated_responses"]) == (0, 0)
    tight = prepare_examples(
        configure(**SMALL, **{key: limit - 1 for key, limit in limits.items()}), tmp_path / "tight"
    )
    assert tight["truncated_prompts"] == prompts.count(max(prompts))
    assert tight["truncated_responses"] == responses.count(max(responses))


def test_a_cut_response_has_no_eos(tmp_path: Path) -> None:
    """With a limit of 4: 3 tokens and EOS fit; 4 tokens lose their EOS; of 5 tokens the first 4 are kept."""
    texts = {"three": "123", "four": "4567", "five": "89012"}  # a vocabulary of 300: one token per digit
    path = write_dolly(tmp_path / "d.jsonl", [{"instruction": a, "response": b} for a, b in texts.items()])
    limits = {"max_response_tokens": 4, "tokenizer": {"vocabulary_size": 300}}
    config = configure(source="dolly", path=path, train_rows=2, validation_rows=0, test_rows=1, **limits)
    summary = prepare_examples(config, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    rows = {row["prompt"].strip(): row["response_ids"] for row in rows_of(tmp_path / "out", "train", "test")}
    encoded = {name: tokenizer.encode(text) for name, text in texts.items()}
    assert [len(encoded[name]) for name in texts] == [3, 4, 5]
    assert rows == {
        "three": [*encoded["three"], tokenizer.eos_token_id],
        "four": encoded["four"],
        "five": encoded["five"][:4],
    }
    assert (summary["truncated_responses"], summary["responses_without_eos"]) == (2, 2)
    shown = list(summary)[:6]  # the console's line has room for a dozen numbers, and sources add counts of their own
    assert shown[3:] == ["truncated_prompts", "truncated_responses", "responses_without_eos"]


@pytest.mark.parametrize(
    ("responses", "warning"),
    [
        (["1", "2", "3", "45678"], None),
        (["1", "2", "34567", "45678"], "2 of 4 responses (50%) are cut to data.max_response_tokens 4 and have no EOS"),
    ],
)
def test_a_warning_if_more_than_a_quarter_of_the_responses_is_cut(
    responses: list[str], warning: str | None, tmp_path: Path
) -> None:
    rows = [{"instruction": f"q{n}", "response": text} for n, text in enumerate(responses)]
    path = write_dolly(tmp_path / "d.jsonl", rows)
    limits = {"max_response_tokens": 4, "tokenizer": {"vocabulary_size": 300}}
    config = configure(source="dolly", path=path, train_rows=3, validation_rows=0, test_rows=1, **limits)
    lines = prepare_examples(config, tmp_path / "out")["warnings"]
    assert [line[: len(warning or "")] for line in lines] == ([warning] if warning else [])


def test_passages_without_an_end_cause_no_warning_when_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A standard library of one file: reading all of Python's takes seconds."""
    library, letters = tmp_path / "library", "abcdefgh"
    library.mkdir()
    words = [f"word{a}{b}{c}{d}" for a in letters for b in letters for c in letters for d in letters]
    (library / "module.py").write_text(f'"""A{" ".join(words)}."""\n')
    monkeypatch.setattr("sysconfig.get_path", lambda name: {"stdlib": str(library)}[name])
    monkeypatch.setattr("pydoc_data.topics.topics", {})
    config = configure(source="python_docs", train_rows=20, validation_rows=0, test_rows=10, max_response_tokens=24)
    summary = prepare_examples(config, tmp_path / "out")
    assert summary["truncated_responses"] == summary["responses_without_eos"] == 30
    assert summary["warnings"] == []


def test_exact_duplicates_are_kept_counted_and_given_different_ids(tmp_path: Path) -> None:
    same = {"instruction": "Say hi.", "response": "hi"}
    others = [{"instruction": f"Say {n}.", "response": str(n)} for n in range(5)]
    path = write_dolly(tmp_path / "d.jsonl", [same, *others, same, {**same, "response": "hello"}, same])
    config = configure(source="dolly", path=path, train_rows=5, validation_rows=0, test_rows=4)
    summary = prepare_examples(config, tmp_path / "out")
    assert summary["duplicate_rows"] == 2
    assert summary["repeated_prompts"] == 3
    rows = rows_of(tmp_path / "out", *SPLITS)
    assert len({row["id"] for row in rows}) == 9
    sides = [split for split in SPLITS for row in rows_of(tmp_path / "out", split) if row["prompt"] == "Say hi.\n"]
    assert len(sides) == 4
    assert len(set(sides)) == 1


def test_special_tokens_spelled_out_in_a_text_stay_text(tmp_path: Path) -> None:
    texts = [{"instruction": f"<|endoftext|> {n}", "response": "a <|endoftext|> b"} for n in range(2)]
    path = write_dolly(tmp_path / "d.jsonl", texts)
    prepare_examples(
        configure(source="dolly", path=path, train_rows=1, validation_rows=0, test_rows=1), tmp_path / "out"
    )
    eos = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer").eos_token_id
    for row in rows_of(tmp_path / "out", "train", "test"):
        assert eos not in row["prompt_ids"]
        assert row["response_ids"].index(eos) == len(row["response_ids"]) - 1


def test_the_synthetic_task_reads_no_file(tmp_path: Path) -> None:
    config = configure(**SMALL, source="synthetic", path=tmp_path / "absent.jsonl")
    assert not needs_ray(config.data)
    assert len(load_corpus(config.data, config.seed).rows) == 400


def test_a_one_token_response_is_kept_with_its_eos(tmp_path: Path) -> None:
    """If truncation negatives are configured, stage `sampling` leaves it out, not stage `data`."""
    path = write_dolly(tmp_path / "d.jsonl", [{"instruction": f"Say {n}.", "response": str(n)} for n in range(4)])
    prepare_examples(
        configure(source="dolly", path=path, train_rows=3, validation_rows=0, test_rows=1), tmp_path / "out"
    )
    assert {len(row["response_ids"]) for row in rows_of(tmp_path / "out", "train", "test")} == {2}


def test_a_folder_of_one_file_reads_like_the_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    path = write_dolly(tmp_path / "d" / "d.jsonl", [{"instruction": f"q{n}", "response": f"r{n}"} for n in range(4)])
    sizes = {"train_rows": 3, "validation_rows": 0, "test_rows": 1}
    for place in (path, path.parent, f"file://{path}"):
        prepare_examples(configure(source="dolly", path=place, **sizes), tmp_path / "out")
        assert len(rows_of(tmp_path / "out", "train", "test")) == 4


def test_any_instruction_file_with_named_fields(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.jsonl"
    rows = [{"prompt": f"q{n}", "input": "c" * (n % 2), "output": f"r{n}"} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"instruction": "prompt", "context": "input", "response": "output"}
    config = configure(source="instructions", path=path, fields=fields, train_rows=4, validation_rows=0, test_rows=2)
    prepare_examples(config, tmp_path / "out")
    made = rows_of(tmp_path / "out", "train", "test")
    assert {row["prompt"] for row in made} == {"q0\n", "q1\nc\n", "q2\n", "q3\nc\n", "q4\n", "q5\nc\n"}
    assert {(row["source"], row["category"]) for row in made} == {("instructions", "")}


def test_bad_line_stops_the_stage_or_is_quarantined(tmp_path: Path) -> None:
    path = write_dolly(tmp_path / "d.jsonl", [{"instruction": f"q{n}", "response": f"r{n}"} for n in range(4)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join([*lines[:2], b'{"instruction": "half\n', b'{"instruction": "q", "response": ""}\n', *lines[2:]])
    )
    sizes = {"train_rows": 3, "validation_rows": 0, "test_rows": 1}
    with pytest.raises(DataError, match=r"d\.jsonl:3: not JSON.*data\.on_bad_row=quarantine"):
        prepare_examples(configure(source="dolly", path=path, **sizes), tmp_path / "strict")
    out = tmp_path / "lenient"
    summary = prepare_examples(configure(source="dolly", path=path, on_bad_row="quarantine", **sizes), out)
    assert summary["quarantined_rows"] == 2
    assert [(row["line"], row["reason"][:11]) for row in read_jsonl(out / "quarantine.jsonl")] == [
        (3, "not JSON: U"),
        (4, "missing key"),
    ]
    assert len(rows_of(out, *SPLITS)) == 4


def test_quarantined_rows_do_not_count_as_usable_and_the_error_quotes_the_first(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_text("instruction,response\n" * 5)
    config = configure(source="dolly", path=path, on_bad_row="quarantine", train_rows=3, test_rows=1)
    error = (
        r"0 usable rows, but train 3 \+ validation 200 \+ test 1 = 204: 204 too few.*"
        r"5 rows cannot be used; the first: .*d\.txt:1: not JSON"
    )
    with pytest.raises(DataError, match=error):
        prepare_examples(config, tmp_path / "out")


def test_template_that_would_lose_instructions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share the line"):
        prepare_examples(configure(**SMALL, template="{instruction} {context}"), tmp_path)
