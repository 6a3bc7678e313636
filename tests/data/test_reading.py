import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cpo_ray.artifacts import read_jsonl
from cpo_ray.cluster.session import ray_cluster
from cpo_ray.config import ClusterConfig
from cpo_ray.data import reading
from cpo_ray.data.examples import prepare_examples
from cpo_ray.data.reading import CHUNK_RECORDS, read_chunks
from cpo_ray.errors import DataError
from tests.data.dumps import page, write_dump
from tests.data.test_articles import article, configure, rows_of, tokenizer

__all__ = ["tokenizer"]  # a fixture


def numbers(file: Any, name: str) -> Iterator[int]:
    for line in file:
        yield int(line)


def test_one_part_comes_in_order_in_chunks(tmp_path: Path) -> None:
    part = tmp_path / "numbers"
    part.write_text("".join(f"{n}\n" for n in range(150)))
    chunks = list(read_chunks([str(part)], numbers))
    assert [chunk.number for chunk in chunks] == [0, 1, 2]
    assert [len(chunk.records) for chunk in chunks] == [CHUNK_RECORDS, CHUNK_RECORDS, 150 - 2 * CHUNK_RECORDS]
    assert [number for chunk in chunks for number in chunk.records] == list(range(150))
    assert chunks[-1].byte == part.stat().st_size


def test_reading_is_lazy(tmp_path: Path) -> None:
    part = tmp_path / "numbers"
    part.write_text("1\n" * CHUNK_RECORDS + "no number\n")
    chunks = read_chunks([str(part)], numbers)
    assert next(iter(chunks)).records == [1] * CHUNK_RECORDS


def test_a_missing_part_is_an_error_with_the_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data file .*absent\. Fetch it\."):
        list(read_chunks([str(tmp_path / "absent")], numbers, "Fetch it."))


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), before]))
    with ray_cluster(ClusterConfig(local_cpus=2, object_store_gib=0.2)) as lazy:
        lazy.ensure()
        yield
    os.environ["PYTHONPATH"] = before


@pytest.mark.e2e
@pytest.mark.usefixtures("ray")
def test_parts_read_in_parallel_give_the_rows_of_one_file(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PARALLEL_BYTES", 0)
    check_parts(tokenizer, tmp_path)


def test_parts_read_sequentially_give_the_rows_of_one_file(tokenizer: Path, tmp_path: Path) -> None:
    check_parts(tokenizer, tmp_path)


def check_parts(tokenizer: Path, tmp_path: Path) -> None:
    """Also checks that a damaged part, an empty one and a missing field are each reported as in a single file."""
    pages = [page(f"Article {n}", article(n)) for n in range(21)]
    one = write_dump(tmp_path / "one.xml.bz2", *pages)
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(3):
        write_dump(parts / f"{number}.xml.bz2", *pages[number::3])
    prepare_examples(configure(one, tokenizer), tmp_path / "from one")
    prepare_examples(configure(parts, tokenizer), tmp_path / "from parts")
    for split in ("train", "validation", "test"):
        assert rows_of(tmp_path / "from one", split) == rows_of(tmp_path / "from parts", split)

    whole = (parts / "1.xml.bz2").read_bytes()
    (parts / "1.xml.bz2").write_bytes(whole[:-9])
    with pytest.raises(DataError, match=rf"parts/1\.xml\.bz2: byte {len(whole) - 9}: .*truncated"):
        prepare_examples(configure(parts, tokenizer), tmp_path / "damaged")
    (parts / "1.xml.bz2").write_bytes(b"")
    with pytest.raises(DataError, match=r"parts/1\.xml\.bz2 is empty"):
        prepare_examples(configure(parts, tokenizer), tmp_path / "empty")

    folder = tmp_path / "lines"
    folder.mkdir()
    for number in range(3):
        lines = [{"instruction": f"q{number}.{k}", "response": f"r{k}"} for k in range(100)]
        lines[7].pop("response")
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = configure(folder, tokenizer, source="instructions", on_bad_row="quarantine")
    assert prepare_examples(config, tmp_path / "quarantined")["quarantined_rows"] == 3
    bad_lines = [(Path(bad["file"]).name, bad["line"]) for bad in read_jsonl(tmp_path / "quarantined/quarantine.jsonl")]
    assert bad_lines == [("0.jsonl", 8), ("1.jsonl", 8), ("2.jsonl", 8)]
