import errno

import pytest

from cpo_ray.config import ClusterConfig
from cpo_ray.training import storage
from cpo_ray.training.storage import no_room, patiently, storage_place


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass by sleeping alone."""
    now = [0.0]
    monkeypatch.setattr(storage.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def out_until(clock, end, error):
    """Storage that is out of reach until `end`."""

    def store():
        if clock[0] < end:
            raise error
        return "stored"

    return store


def test_an_outage_of_a_minute_is_waited_out(clock):
    assert (
        patiently(out_until(clock, 60, OSError("When reading information: curlCode 7, could not connect"))) == "stored"
    )
    assert 60 <= clock[0] < 60 + storage.LONGEST_WAIT_S


def test_an_outage_without_end_is_not(clock):
    with pytest.raises(OSError, match="could not connect"):
        patiently(out_until(clock, 10**6, OSError("could not connect")))
    assert clock[0] <= storage.PATIENCE_S


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), FileNotFoundError("the local checkpoint")])
def test_what_waiting_cannot_cure_is_told_at_once(clock, error):
    with pytest.raises(OSError, match=str(error.args[-1])):
        patiently(out_until(clock, 60, error))
    assert clock[0] == 0


def test_a_full_disk_is_told_in_words():
    assert "make room" in no_room(OSError(errno.ENOSPC, "No space left on device"))
    assert "make room" in no_room(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"))
    assert no_room(OSError(errno.EIO, "Input/output error")) is None


def test_runs_that_share_a_storage_do_not_share_a_folder(tmp_path):
    """The same recipe gives a training the same name in every run."""
    shared = ClusterConfig(checkpoint_storage="s3://bucket/checkpoints?region=eu-central-1")
    folders = [tmp_path / user / "table2" / "checkpoints" / "cpo-0123456789ab" for user in ("alice", "bob")]
    places = [storage_place(shared, folder) for folder in folders]
    assert {storage for storage, _ in places} == {shared.checkpoint_storage}
    (alices, bobs) = (name for _, name in places)
    assert alices != bobs
    assert alices.startswith("table2-")
    assert storage_place(shared, folders[0]) == places[0]  # found again


def test_without_a_storage_a_training_lies_in_its_run(tmp_path):
    folder = tmp_path / "table2" / "checkpoints" / "cpo-0123456789ab"
    assert storage_place(ClusterConfig(), folder) == (str(folder.parent), folder.name)
