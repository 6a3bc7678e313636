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
from cpo_ray.data.sources import fingerprint
from cpo_ray.errors import DataError
from pathlib import Path
for name in sys.argv[2:]:
    data = {"source": "dolly", "path": name, "train_rows": 12, "validation_rows": 2, "test_rows": 6}
    config = parse_config({"name": "test", "data": data}, "test")
    try:
        result = prepare_examples(config, Path(sys.argv[1])), fingerprint(name, "dolly"), fingerprint(name, "dolly")
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


@pytest.mark.parametrize(("error", "reason"), [(OSError(), "OSError"), (ValueError("Pick one.\nOr two."), "Pick one")])
def test_errors_of_datasets_become_one_line(monkeypatch, error, reason):
    def fail(name, split):
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(DataError, match=rf"no file or folder some/thing, .* Hugging Face hub: {reason}\. Name another"):
        fetch_rows("some/thing")


def test_an_unreachable_hub_is_reported_for_its_files_too(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    (message,) = read(nowhere, tmp_path, "hf://datasets/some/thing/train.jsonl")
    assert message.startswith("hf://datasets/some/thing/train.jsonl cannot be read: ")
