import json

import pytest
from ray.train import Checkpoint

from cpo_ray.training.checkpoint import (
    CURSOR,
    _write_seal,
    copy_first_intact_model,
    find_fault,
    sort_by_validation_loss,
)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of two workers: each writes its shard and its seal, the first also the cursor."""
    for rank in range(2):
        (tmp_path / "engine").mkdir(exist_ok=True)
        folder = tmp_path / f"worker-{rank}"
        folder.mkdir()
        (folder / "shard.pt").write_bytes(bytes([rank]) * 100)
        if rank == 0:
            (folder / CURSOR).write_text(json.dumps({"finished": 5, "workers": 2}))
        _write_seal(folder, rank)
        for file in folder.iterdir():
            name = f"engine/{rank}.pt" if file.name == "shard.pt" else file.name
            file.rename(tmp_path / name)
        seal = tmp_path / f"seal-0000{rank}.json"
        seal.write_text(seal.read_text().replace("shard.pt", f"engine/{rank}.pt"))
        folder.rmdir()
    return tmp_path


def test_an_intact_checkpoint_has_no_fault(checkpoint):
    assert find_fault(checkpoint) is None
    assert [find_fault(checkpoint, part, 3) for part in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (CURSOR, "cursor.json is missing"),
        ("seal-00001.json", "seal-00001.json is missing"),
        ("engine/1.pt", "engine/1.pt is missing"),
    ],
)
def test_a_missing_file_is_named(checkpoint, name, fault):
    (checkpoint / name).unlink()
    assert find_fault(checkpoint) == fault


def test_a_truncated_file_is_named(checkpoint):
    file = checkpoint / "engine" / "0.pt"
    file.write_bytes(file.read_bytes()[:-1])
    assert find_fault(checkpoint) == "engine/0.pt has changed since it was written"


@pytest.mark.parametrize("name", [CURSOR, "seal-00001.json"])
@pytest.mark.parametrize("content", [b"", b'{"fin', b"\xff\x00", b"[5]"])
def test_an_incomplete_cursor_or_seal_is_a_fault(checkpoint, name, content):
    (checkpoint / name).write_bytes(content)
    assert find_fault(checkpoint).startswith(f"{name} is not JSON")


def test_each_worker_checks_its_share(checkpoint):
    (checkpoint / "engine" / "1.pt").unlink()
    assert find_fault(checkpoint, 0, 2) is None
    assert find_fault(checkpoint, 1, 2) == "engine/1.pt is missing"


def store(folder, step, loss):
    """A checkpoint of one worker with a model, as Ray Train stores it."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_text(folder.name)
    (folder / CURSOR).write_text(json.dumps({"finished": step, "workers": 1}))
    _write_seal(folder, 0)
    return Checkpoint.from_directory(folder), {"finished": step, "validation_loss": loss}


def test_a_damaged_checkpoint_is_not_the_best_model(tmp_path):
    """Step 15 was damaged, skipped and saved again; both checkpoints have the same loss, the older is listed first."""
    stored = [
        store(tmp_path / name, step, loss) for name, step, loss in (("5", 5, 1.9), ("15", 15, 1.5), ("again", 15, 1.5))
    ]
    damaged = tmp_path / "15" / "model" / "weights"
    damaged.write_text("")
    out, notices = tmp_path / "out", []
    out.mkdir()
    assert copy_first_intact_model(sort_by_validation_loss(stored), out, notices.append)
    assert ((out / "weights").read_text(), notices) == ("again", [])

    (tmp_path / "again" / "seal-00000.json").write_text("")
    assert copy_first_intact_model(sort_by_validation_loss(stored), out, notices.append)
    assert (out / "weights").read_text() == "5"
    assert [notice.partition(":")[0] for notice in notices] == [
        "the checkpoint of step 15 is damaged (seal-00000.json is not JSON, or not a seal)",
        "the checkpoint of step 15 is damaged (model/weights has changed since it was written)",
    ]
    (tmp_path / "5" / CURSOR).unlink()
    assert not copy_first_intact_model(sort_by_validation_loss(stored), out, notices.append)
