"""The real `datasets` against the hub's protocol. It reads HF_ENDPOINT once per process, so each test starts a process."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpo_ray.data.hub import fetch_rows
from cpo_ray.errors import DataError
from tests.data.fake_hub import serve_hub

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
ROWS = [{"instruction": f"do {n}", "context": "", "response": f"done “{n}”", "category": "x"} for n in range(20)]
READ = """
import json, sys
from cpo_ray.config.loading import parse_config
from cpo_ray.data.examples import prepare_examples
from cpo_ray.data.sources import fingerprint, hub_part
from cpo_ray.errors import DataError
from pathlib import Path
for name in sys.argv[2:]:
    name, *keys = name.split()
    data = {"source": "dolly", "path": name, "train_rows": 12, "validation_rows": 2, "test_rows": 6}
    data |= dict(key.split("=") for key in keys)
    config = parse_config({"name": "test", "data": data}, "test")
    try:
        part = hub_part(config.data)
        result = (
            prepare_examples(config, Path(sys.argv[1])), fingerprint(name, "dolly", part), fingerprint(name, "dolly", part)
        )
    except DataError as error:
        result = str(error)
    print(json.dumps(result))
"""


def read(environment: dict[str, str], out: Path, *names: str) -> list:
    command = [sys.executable, "-c", READ, str(out), *names]
    environment = os.environ | environment | {"PYTHONPATH": str(ROOT)}
    seen = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True, timeout=240, check=False)
    assert seen.returncode == 0, seen.stderr
    return [json.loads(line) for line in seen.stdout.splitlines() if line.startswith(("[", '"'))]


def test_a_dataset_is_read_from_parquet_and_then_from_the_cache(tmp_path):
    """A missing dataset is reported; a cached revision does not need the hub."""
    stored = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), stored)
    with serve_hub("some/thing", {"README.md": b"", "train.parquet": stored.getvalue()}, tmp_path / "home") as hub:
        (summary, first, again), missing = read(hub, tmp_path, "some/thing", "no/such-thing")
    assert (summary["train_rows"], summary["test_rows"]) == (12, 6)
    assert first == again != [None]
    assert missing.startswith(
        "data.path: there is no file or folder no/such-thing, and it cannot be read as a dataset on the Hugging Face hub: "
    )
    ((_, offline, _),) = read(hub | {"HF_HUB_OFFLINE": "1"}, tmp_path, "some/thing")
    assert offline == first
    table = pq.read_table(tmp_path / "train")
    assert {f"done “{n}”" for n in range(20)} >= set(table["response"].to_pylist())


CARD = """---
configs:
- config_name: plain
  data_files: [{split: train, path: train.jsonl}, {split: dev, path: dev.jsonl}]
- config_name: other
  data_files: [{split: train, path: other.jsonl}]
---
"""


def test_subset_split_and_revision_choose_what_is_read(tmp_path):
    """And what the dataset does not have is answered with what it has."""
    rows = {
        "train.jsonl": ROWS,
        "dev.jsonl": [row | {"response": "dev"} for row in ROWS],
        "other.jsonl": [row | {"response": "other"} for row in ROWS * 2],
    }
    files = {name: "".join(json.dumps(row) + "\n" for row in content).encode() for name, content in rows.items()}
    with serve_hub("some/thing", {"README.md": CARD.encode(), **files}, tmp_path / "home") as hub:
        (dev, *_), (other, *_), no_subset, no_split, which, no_revision = read(
            hub,
            tmp_path,
            "some/thing subset=plain split=dev revision=v1",
            "some/thing subset=other split=train[:50%]",
            "some/thing subset=mine",
            "some/thing subset=plain split=test",
            "some/thing",
            "some/thing subset=plain revision=v2",
        )
    assert (dev["train_rows"], dev["unused_rows"]) == (12, 0)
    assert (other["train_rows"], other["unused_rows"]) == (12, 0)  # half of 40 rows
    assert no_subset == (
        "data.subset: the dataset some/thing on the Hugging Face hub has no subset 'mine'; it has plain, other"
    )
    assert no_split.startswith(
        "data.split: the dataset some/thing on the Hugging Face hub has no split 'test'; it has train, dev"
    )
    assert "has several subsets: plain, other. Name one with data.subset" in which
    assert no_revision.startswith("data.revision: the dataset some/thing on the Hugging Face hub has no revision 'v2'")
    (row,) = {row["response"] for row in pq.read_table(tmp_path / "train").to_pylist()}
    assert row == "other"


@pytest.mark.parametrize(("error", "reason"), [(OSError(), "OSError"), (ValueError("Pick one.\nOr two."), "Pick one")])
def test_errors_of_datasets_become_one_line(monkeypatch, error, reason):
    def fail(name, split, **options):
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match=rf"no file or folder some/thing, .* Hugging Face hub: {reason}\. Name another"):
        fetch_rows("some/thing")


def test_an_unreachable_hub_is_reported_for_its_files_too(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    (message,) = read(nowhere, tmp_path, "hf://datasets/some/thing/train.jsonl")
    assert message.startswith("hf://datasets/some/thing/train.jsonl cannot be read: ")
