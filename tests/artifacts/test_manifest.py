import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from cpo_ray.artifacts import (
    find_artifact,
    hash_directories,
    lock_run,
    make_artifact,
    manifest,
    read_jsonl,
    read_table,
    write_atomically,
    write_json,
    write_table,
)
from cpo_ray.errors import ArtifactError, RunInUseError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def builder(text, calls=None):
    def build(folder):
        if calls is not None:
            calls.append(folder)
        (folder / "rows.jsonl").write_text(text)
        return {"rows": text.count("\n")}

    return build


def test_an_artifact_says_what_it_holds(tmp_path):
    artifact = make_artifact(tmp_path, "data", {"seed": 1}, builder('{"a": 1}\n{"a": 2}\n'))
    entry = artifact.manifest.files["rows.jsonl"]
    assert entry["rows"] == 2
    assert entry["bytes"] == 18
    assert entry["sha256"] == hashlib.sha256(b'{"a": 1}\n{"a": 2}\n').hexdigest()
    assert artifact.manifest.inputs == {"seed": 1}
    assert artifact.manifest.summary == {"rows": 2}
    assert not artifact.reused
    assert names(tmp_path / "data") == ["manifest.json", "rows.jsonl"]
    assert names(tmp_path) == ["data"]


def test_parquet_rows_are_counted(tmp_path):
    table = pa.table({"x": [1, 2, 3]})
    artifact = make_artifact(tmp_path, "t", {}, lambda out: write_table(out / "a.parquet", table) or {})
    assert artifact.manifest.files["a.parquet"]["rows"] == 3
    assert read_table(artifact.path) == table


def test_the_same_inputs_are_not_built_again(tmp_path):
    calls = []
    first = make_artifact(tmp_path, "data", {"seed": 1, "alphas": (0.3, 0.7)}, builder("x", calls))
    second = make_artifact(tmp_path, "data", {"alphas": [0.3, 0.7], "seed": 1}, builder("y", calls))
    assert len(calls) == 1
    assert second.reused
    assert second.fingerprint == first.fingerprint


def test_changed_inputs_rebuild_and_replace(tmp_path):
    first = make_artifact(tmp_path, "data", {"seed": 1}, builder("one"))
    second = make_artifact(tmp_path, "data", {"seed": 2}, builder("two"))
    assert not second.reused
    assert second.fingerprint != first.fingerprint
    assert (tmp_path / "data" / "rows.jsonl").read_text() == "two"
    assert names(tmp_path) == ["data"]


def test_equal_content_has_an_equal_fingerprint(tmp_path):
    one = make_artifact(tmp_path / "a", "data", {"seed": 1}, builder("same"))
    two = make_artifact(tmp_path / "b", "data", {"seed": 1}, builder("same"))
    assert one.fingerprint == two.fingerprint


def test_a_builder_that_raises_leaves_no_artifact(tmp_path):
    def build(folder):
        (folder / "half.jsonl").write_text("{")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        make_artifact(tmp_path, "data", {}, build)
    assert find_artifact(tmp_path, "data") is None
    assert not (tmp_path / "data").exists()


def test_a_failed_rebuild_leaves_the_old_artifact_whole(tmp_path):
    make_artifact(tmp_path, "data", {"seed": 1}, builder("one"))

    def build(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        make_artifact(tmp_path, "data", {"seed": 2}, build)
    assert find_artifact(tmp_path, "data").manifest.inputs == {"seed": 1}
    assert (tmp_path / "data" / "rows.jsonl").read_text() == "one"


def test_a_table_that_finds_the_disk_full_leaves_nothing(tmp_path):
    """A real ENOSPC: what is written goes to /dev/full."""
    (tmp_path / f".part.parquet.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        write_table(tmp_path / "part.parquet", pa.table({"id": ["row"]}))
    assert list(tmp_path.iterdir()) == []


def shard_builder(seen, fail_at=None):
    def build(folder):
        for shard in range(4):
            if (folder / f"{shard}.jsonl").exists():
                continue
            if shard == fail_at:
                raise RuntimeError("killed")
            seen.append(shard)
            with write_atomically(folder / f"{shard}.jsonl") as temporary:
                temporary.write_text("{}\n")
        return {}

    return build


def test_a_partial_build_continues_where_it_stopped(tmp_path):
    seen = []
    with pytest.raises(RuntimeError):
        make_artifact(tmp_path, "groups/train", {"seed": 1}, shard_builder(seen, fail_at=2))
    artifact = make_artifact(tmp_path, "groups/train", {"seed": 1}, shard_builder(seen))
    assert seen == [0, 1, 2, 3]
    assert len(artifact.manifest.files) == 4


def test_a_partial_build_of_other_inputs_is_not_continued(tmp_path):
    seen = []
    with pytest.raises(RuntimeError):
        make_artifact(tmp_path, "groups/train", {"seed": 1}, shard_builder(seen, fail_at=2))
    make_artifact(tmp_path, "groups/train", {"seed": 2}, shard_builder(seen))
    assert seen == [0, 1, 0, 1, 2, 3]


KILLED = """
import os, signal, sys
from pathlib import Path
from cpo_ray.artifacts import make_artifact, write_atomically

def build(folder):
    with write_atomically(folder / "0.jsonl") as temporary:
        temporary.write_text("{}\\n")
    with write_atomically(folder / "1.jsonl") as temporary:
        temporary.write_text("{")
        os.kill(os.getpid(), signal.SIGKILL)

make_artifact(Path(sys.argv[1]), "data", {"seed": 1}, build)
"""


def test_a_killed_build_never_looks_whole(tmp_path):
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert find_artifact(tmp_path, "data") is None
    seen = []
    artifact = make_artifact(tmp_path, "data", {"seed": 1}, shard_builder(seen))
    assert seen == [1, 2, 3]
    assert sorted(artifact.manifest.files) == ["0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl"]


def test_a_fault_while_hashing_loses_no_shard(tmp_path, monkeypatch):
    seen = []

    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "_describe_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_artifact(tmp_path, "groups/train", {"seed": 1}, shard_builder(seen))
    monkeypatch.undo()
    artifact = make_artifact(tmp_path, "groups/train", {"seed": 1}, shard_builder(seen))
    assert seen == [0, 1, 2, 3]
    assert names(artifact.path) == ["0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl", "manifest.json"]


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_file_is_detected(tmp_path, damage):
    artifact = make_artifact(tmp_path, "data", {}, builder("whole"))
    file = artifact.path / "rows.jsonl"
    file.unlink() if damage == "remove" else file.write_text("hol")
    with pytest.raises(ArtifactError, match=r"rows\.jsonl does not match its manifest\. Delete"):
        find_artifact(tmp_path, "data")


@pytest.mark.parametrize("text", ["{", "{}", '{"inputs": {}, "colour": 1}', "[]"])
def test_a_damaged_manifest_is_detected(tmp_path, text):
    artifact = make_artifact(tmp_path, "data", {}, builder("x"))
    (artifact.path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="not a manifest"):
        find_artifact(tmp_path, "data")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["x.json"]


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": 2}\n{"a": "\xc3')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]


def test_another_bad_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(ArtifactError, match=r"x\.jsonl:2 is not JSON"):
        read_jsonl(path)


def test_a_directory_is_told_by_what_loaders_read_of_it(tmp_path):
    model = tmp_path / "model"
    (model / ".cache").mkdir(parents=True)
    (model / "weights").write_text("1")
    before = hash_directories(model=str(model), hub="some/model", none=None)
    assert list(before) == ["model"]
    (model / ".cache" / "lock").touch()
    (model / "README.md").write_text("a model card")
    assert hash_directories(model=str(model)) == before
    (model / "weights").write_text("2")
    assert hash_directories(model=str(model)) != before


def test_a_folder_without_tables_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="holds no Parquet files"):
        read_table(tmp_path)


OWNER = """
import sys, time
from pathlib import Path
from cpo_ray.artifacts import lock_run
with lock_run(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def test_a_run_in_use_is_refused_naming_the_owner(tmp_path, owner):
    with pytest.raises(RunInUseError, match=rf"in use by pid {owner.pid} of \w+ on .*--run-dir"), lock_run(tmp_path):
        pass


def test_a_killed_owner_holds_nothing(tmp_path, owner):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with lock_run(tmp_path):
        assert f"pid {os.getpid()} " in (tmp_path / "run.lock").read_text()
    assert Path(tmp_path / "run.lock").read_text() == ""


def test_the_lock_can_be_taken_again(tmp_path):
    for _ in range(2):
        with lock_run(tmp_path):
            assert f"pid {os.getpid()} " in (tmp_path / "run.lock").read_text()
