"""The real `datasets` against the hub's protocol. Where the hub is, it is asked for once a process, so each test has one."""

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
from cpo_ray.data.sources import fingerprint
from cpo_ray.errors import DataError
from pathlib import Path
for name in sys.argv[2:]:
    data = {"source": "dolly", "path": name, "train_rows": 12, "validation_rows": 2, "test_rows": 6}
    config = parse_config({"name": "test", "data": data}, "test")
    try:
        told = prepare_examples(config, Path(sys.argv[1])), fingerprint(name, "dolly"), fingerprint(name, "dolly")
    except DataError as error:
        told = str(error)
    print(json.dumps(told))
"""


def read(environment: dict[str, str], out: Path, *names: str) -> list:
    command = [sys.executable, "-c", READ, str(out), *names]
    environment = os.environ | environment | {"PYTHONPATH": str(ROOT)}
    seen = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True, timeout=240, check=False)
    assert seen.returncode == 0, seen.stderr
    return [json.loads(line) for line in seen.stdout.splitlines() if line.startswith(("[", '"'))]


def test_a_data_set_is_read_whatever_it_is_stored_in(tmp_path):
    """Here Parquet. A name that is none is told; a revision that is in the cache needs no hub."""
    stored = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), stored)
    with serve_hub("some/thing", {"README.md": b"", "train.parquet": stored.getvalue()}, tmp_path / "home") as hub:
        (summary, first, again), missing = read(hub, tmp_path, "some/thing", "no/such-thing")
    assert (summary["train_rows"], summary["test_rows"]) == (12, 6)
    assert first == again != [None]
    assert missing.startswith(
        "data.path: no/such-thing is no file or folder here, and as a data set on the hub it cannot be"
    )
    ((_, offline, _),) = read(hub | {"HF_HUB_OFFLINE": "1"}, tmp_path, "some/thing")
    assert offline == first
    table = pq.read_table(tmp_path / "train")
    assert {f"done “{n}”" for n in range(20)} >= set(table["response"].to_pylist())


@pytest.mark.parametrize(("error", "reason"), [(OSError(), "OSError"), (ValueError("Pick one.\nOr two."), "Pick one")])
def test_whatever_datasets_raises_is_told_in_a_line(monkeypatch, error, reason):
    def fail(name, split):
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match=rf"some/thing is no file .* it cannot be read: {reason}\. Name another"):
        fetch_rows("some/thing")


def test_a_hub_that_cannot_be_reached_is_told_for_its_files_too(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    (told,) = read(nowhere, tmp_path, "hf://datasets/some/thing/train.jsonl")
    assert told.startswith("hf://datasets/some/thing/train.jsonl cannot be read: ")
