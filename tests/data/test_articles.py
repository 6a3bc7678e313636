import bz2
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cpo_ray.artifacts import Summary, read_jsonl, read_table
from cpo_ray.config import RunConfig
from cpo_ray.config.loading import parse_config
from cpo_ray.data import articles
from cpo_ray.data.examples import needs_ray, prepare_examples
from cpo_ray.data.reading import PARALLEL_BYTES, read_chunks
from cpo_ray.data.tokenization import train_tokenizer
from cpo_ray.errors import DataError
from cpo_ray.records import EXAMPLE_SCHEMA, without_eos
from tests.data.dumps import DUMPS, page, write_dump

SPLITS = ("train", "validation", "test")
SIZES = {"train_rows": 20, "validation_rows": 4, "test_rows": 6}
GPT2 = DUMPS.parent / "tokenizers"


def article(number: int, words: int = 90) -> str:
    return " ".join(f"'''word{number}x{k}'''" if k % 9 == 0 else f"[[w{(number * k) % 31}]]" for k in range(words))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([f"word{n}x{k} w{k}" for n in range(9) for k in range(50)], 400).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wiki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pages = [page(f"Article {n}", article(n)) for n in range(20)]
    return write_dump(tmp_path_factory.mktemp("wiki") / "wiki.xml.bz2", *pages, page("Stub", "Too short."), pages[0])


def configure(path: Path, tokenizer: Path, **data: Any) -> RunConfig:
    tree = {
        "source": "wikidump",
        "path": str(path),
        "tokenizer": {"path": str(tokenizer)},
        "passages": {"tokens": 60, "min_tokens": 20},
        **SIZES,
    }
    return parse_config({"name": "test", "data": tree | data, "model": {"context": 512}}, "test")


def rows_of(out: Path, *splits: str) -> list[dict[str, Any]]:
    return [row for split in splits for row in read_table(out / split).to_pylist()]


@pytest.fixture(scope="module")
def made(wiki: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    out = tmp_path_factory.mktemp("out")
    return out, prepare_examples(configure(wiki, tokenizer), out)


def test_files_have_the_rows_and_the_schema(made: tuple[Path, Summary]) -> None:
    out, summary = made
    for split in SPLITS:
        table = read_table(out / split)
        assert table.schema.equals(EXAMPLE_SCHEMA)
        assert table.num_rows == summary[f"{split}_rows"] == SIZES[f"{split}_rows"]
    assert not (out / "answers.json").exists()


def test_examples_are_prompt_and_continuation(made: tuple[Path, Summary]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made[0] / "tokenizer")
    for row in rows_of(made[0], *SPLITS):
        response = without_eos(row["response_ids"], tokenizer.eos_token_id)
        tokens = len(row["prompt_ids"]) + len(response)
        assert 20 <= tokens <= 60
        assert len(row["prompt_ids"]) == int(0.15 * tokens)
        assert tokenizer.decode(row["prompt_ids"]) == row["prompt"]
        assert tokenizer.decode(response) == row["response"]
        assert row["category"].startswith("Article ")
        assert (row["source"], len(row["id"])) == ("wikidump", 16)


def test_only_a_passage_that_ends_its_article_has_eos(made: tuple[Path, Summary]) -> None:
    out, summary = made
    eos = AutoTokenizer.from_pretrained(out / "tokenizer").eos_token_id
    rows = rows_of(out, *SPLITS)
    ended = [row["response_ids"][-1] == eos for row in rows]
    assert 0 < sum(ended) < len(rows)
    assert summary["responses_without_eos"] == len(rows) - sum(ended)
    ends = {f"Article {n}": article(n).split()[-1].strip("[']") for n in range(20)}
    for row, ends_here in zip(rows, ended, strict=True):
        assert not ends_here or row["response"].endswith(ends[row["category"]])


def test_a_full_passage_needs_no_room_for_eos(wiki: Path, tokenizer: Path, tmp_path: Path) -> None:
    """60 tokens are 9 of prompt and 51 of continuation."""
    summary = prepare_examples(configure(wiki, tokenizer, max_response_tokens=51), tmp_path)
    assert max(len(row["response_ids"]) for row in rows_of(tmp_path, *SPLITS)) == 51
    assert summary["truncated_responses"] == 0
    assert summary["warnings"] == []


def test_no_article_is_in_two_splits(made: tuple[Path, Summary]) -> None:
    sides = [{row["category"] for row in rows_of(made[0], split)} for split in SPLITS]
    assert all(sides)
    assert len(set.union(*sides)) == sum(map(len, sides))
    assert len({row["id"] for row in rows_of(made[0], *SPLITS)}) == 30


def test_articles_left_out_are_counted(made: tuple[Path, Summary]) -> None:
    _, summary = made
    assert (summary["articles"], summary["short_articles"], summary["duplicate_articles"]) == (22, 1, 1)
    assert summary["unused_rows"] > 0
    assert summary["truncated_prompts"] == summary["truncated_responses"] == summary["quarantined_rows"] == 0


def test_a_prompt_longer_than_the_limit_keeps_its_end_and_is_counted(
    wiki: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration refuses limits that all prompts exceed, but a BOS token can still make a prompt too long."""
    from cpo_ray.data import articles

    monkeypatch.setattr(articles, "encode", lambda *args, **options: [[7]])
    summary = prepare_examples(configure(wiki, tokenizer, max_prompt_tokens=9), tmp_path)
    rows = rows_of(tmp_path, *SPLITS)
    assert summary["truncated_prompts"] > 10
    assert {len(row["prompt_ids"]) for row in rows} <= set(range(4, 10))
    assert sum(row["prompt_ids"][0] != 7 for row in rows) >= summary["truncated_prompts"]


def test_a_truncated_dump_stops_the_stage_or_is_quarantined(wiki: Path, tokenizer: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.xml.bz2"
    pages = wiki.read_bytes()
    streams = bz2.compress(bz2.decompress(pages).removesuffix(b"</mediawiki>\n")) + bz2.compress(b"</mediawiki>\n")
    cut.write_bytes(streams[:-20])
    at = len(streams) - 20
    with pytest.raises(DataError, match=rf"cut\.xml\.bz2: byte {at}: the file ends in the middle.*quarantine"):
        prepare_examples(configure(cut, tokenizer), tmp_path / "strict")
    out = tmp_path / "lenient"
    summary = prepare_examples(configure(cut, tokenizer, on_bad_row="quarantine"), out)
    assert summary["quarantined_rows"] == 1
    (bad,) = read_jsonl(out / "quarantine.jsonl")
    assert (bad["file"], bad["byte"], bad["line"]) == (str(cut), at, None)
    assert len(rows_of(out, *SPLITS)) == 30


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("wiki.xml.bz2", b"", r"wiki\.xml\.bz2 is empty"),
        ("wiki.xml.bz2", b"BZh9 no", r"byte 7: damaged bzip2 data"),
        ("wiki.xml", b"<mediawiki>", "byte 11: not well-formed XML"),
    ],
)
def test_files_that_are_not_a_dump(name: str, content: bytes, words: str, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        prepare_examples(configure(tmp_path / name, tokenizer), tmp_path / "out")


def test_a_tokenizer_without_offsets_is_refused(
    wiki: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cpo_ray.data import articles

    slow = type("Slow", (), {"is_fast": False})()
    monkeypatch.setattr(articles, "make_tokenizer", lambda *args: slow)
    with pytest.raises(DataError, match="gives no character offsets for its tokens"):
        prepare_examples(configure(wiki, tokenizer), tmp_path)


def test_quarantined_rows_are_in_file_order(
    wiki: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that are read in parallel finish in any order."""
    (tmp_path / "parts").mkdir()
    whole = wiki.read_bytes()
    for number, content in enumerate([whole[:-20], whole[:-21], whole]):
        (tmp_path / f"parts/{number}.xml.bz2").write_bytes(content)
    config = configure(tmp_path / "parts", tokenizer, on_bad_row="quarantine")
    prepare_examples(config, tmp_path / "one")
    monkeypatch.setattr(articles, "read_chunks", lambda *arguments: reversed(list(read_chunks(*arguments))))
    prepare_examples(config, tmp_path / "other")
    one, other = (tmp_path / out / "quarantine.jsonl" for out in ("one", "other"))
    assert len(read_jsonl(one)) == 2
    assert one.read_bytes() == other.read_bytes()


def test_too_few_articles_show_the_arithmetic(wiki: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"22 articles .*train 2000 \+ validation 4 \+ test 6 = 2010 are wanted"):
        prepare_examples(configure(wiki, tokenizer, train_rows=2000), tmp_path)


def test_plain_text_works_too(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("".join(f" = Article {n} = \n \n {article(n)} \n\n" for n in range(20)))
    summary = prepare_examples(configure(file, tokenizer, source="text"), tmp_path / "out")
    assert summary["articles"] == 20
    assert {row["source"] for row in rows_of(tmp_path / "out", *SPLITS)} == {"text"}


def test_large_parts_need_ray(wiki: Path, tokenizer: Path, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.xml.bz2").write_bytes(wiki.read_bytes())
    assert not needs_ray(configure(wiki, tokenizer).data)
    assert not needs_ray(configure(tmp_path, tokenizer).data)
    (tmp_path / "2.xml.bz2").write_bytes(bytes(PARALLEL_BYTES))
    assert not needs_ray(configure(tmp_path / "2.xml.bz2", tokenizer).data)
    assert needs_ray(configure(tmp_path, tokenizer).data)


def test_real_wikitext_with_the_real_tokenizer(tmp_path: Path) -> None:
    text = DUMPS / "wikitext-2_valid.txt"
    if not text.exists():
        pytest.skip(f"{text} is absent")
    sizes = {"train_rows": 300, "validation_rows": 50, "test_rows": 100}
    limits = {"passages": {"tokens": 256}, "max_prompt_tokens": 64, "max_response_tokens": 224, "source": "text"}
    config = configure(text, GPT2, **limits, **sizes)
    summary = prepare_examples(config, tmp_path)
    assert (summary["articles"], summary["short_articles"]) == (61, 0)  # one is long and continues as a second
    rows = rows_of(tmp_path, *SPLITS)
    assert len(rows) == 450
    assert sum(len(row["prompt_ids"]) == 38 and len(row["response_ids"]) == 218 for row in rows) > 380
    assert len(rows) - 61 <= sum(row["response_ids"][-1] != 50256 for row in rows) == summary["responses_without_eos"]
    assert len({row["category"] for row in rows_of(tmp_path, "test")}) >= 3
