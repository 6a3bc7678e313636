import errno

import pytest

from cpo_ray.config import ClusterConfig
from cpo_ray.training import storage
from cpo_ray.training.storage import disk_full_advice, retry_os_errors, storage_location


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `sleep` advances."""
    now = [0.0]
    monkeypatch.setattr(storage.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def unreachable_until(clock, end, error):
    """Storage that is unreachable until `end`."""

    def store():
        if clock[0] < end:
            raise error
        return "stored"

    return store


def test_an_outage_of_a_minute_is_retried(clock):
    error = OSError("When reading information: curlCode 7, could not connect")
    assert retry_os_errors(unreachable_until(clock, 60, error)) == "stored"
    assert 60 <= clock[0] < 60 + storage.LONGEST_WAIT_S


def test_an_outage_without_end_is_raised(clock):
    with pytest.raises(OSError, match="could not connect"):
        retry_os_errors(unreachable_until(clock, 10**6, OSError("could not connect")))
    assert clock[0] <= storage.RETRY_FOR_S


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), FileNotFoundError("the local checkpoint")])
def test_a_full_disk_and_a_missing_file_are_raised_at_once(clock, error):
    with pytest.raises(OSError, match=str(error.args[-1])):
        retry_os_errors(unreachable_until(clock, 60, error))
    assert clock[0] == 0


def test_the_advice_for_a_full_disk():
    assert "make room" in disk_full_advice(OSError(errno.ENOSPC, "No space left on device"))
    short_write = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    assert "make room" in disk_full_advice(short_write)
    assert disk_full_advice(OSError(errno.EIO, "Input/output error")) is None


def test_runs_that_share_a_storage_have_separate_folders(tmp_path):
    """Trainings of the same recipe have the same name in every run."""
    shared = ClusterConfig(checkpoint_storage="s3://bucket/checkpoints?region=eu-central-1")
    folders = [tmp_path / user / "table2" / "checkpoints" / "cpo-0123456789ab" for user in ("alice", "bob")]
    places = [storage_location(shared, folder) for folder in folders]
    assert {storage for storage, _ in places} == {shared.checkpoint_storage}
    (alices, bobs) = (name for _, name in places)
    assert alices != bobs
    assert alices.startswith("table2-")
    assert storage_location(shared, folders[0]) == places[0]  # the same when it resumes


def test_without_a_storage_checkpoints_are_in_the_run_directory(tmp_path):
    folder = tmp_path / "table2" / "checkpoints" / "cpo-0123456789ab"
    assert storage_location(ClusterConfig(), folder) == (str(folder.parent), folder.name)
