import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.inference.policy_snapshots import PolicySnapshots


def make_snapshots(folder, every=4, steps=20, *, moves_reference=False):
    folder.mkdir(exist_ok=True)
    return PolicySnapshots(folder, every, steps, moves_reference)


def publish(snapshots, *steps):
    for step in steps:
        snapshots.partial_path(step).mkdir()
        snapshots.publish(step)


def test_a_snapshot_is_one_to_two_periods_old(tmp_path):
    snapshots = make_snapshots(tmp_path)
    assert [snapshots.snapshot_step(step) for step in range(20)] == [0] * 8 + [4] * 4 + [8] * 4 + [12] * 4
    assert {PolicySnapshots(tmp_path, None, 20).snapshot_step(step) for step in range(20)} == {0}


def test_a_snapshot_that_is_the_reference_is_the_policy_at_the_start_of_the_period(tmp_path):
    snapshots = make_snapshots(tmp_path, moves_reference=True)
    assert [snapshots.snapshot_step(step) for step in range(20)] == [step // 4 * 4 for step in range(20)]
    assert [step for step in range(20) if snapshots.starts_at_reference(step)] == [0, 4, 8, 12, 16]
    assert [step for step in range(20) if make_snapshots(tmp_path).starts_at_reference(step)] == [0]
    assert [finished for finished in range(21) if snapshots.is_due(finished)] == [4, 8, 12, 16]


@given(every=st.integers(1, 9), steps=st.integers(1, 50), moves=st.booleans())
def test_exactly_the_needed_snapshots_are_due_and_no_step_needs_a_future_one(tmp_path_factory, every, steps, moves):
    snapshots = PolicySnapshots(tmp_path_factory.getbasetemp(), every, steps, moves)
    due = {finished for finished in range(steps + 1) if snapshots.is_due(finished)}
    assert due == {snapshots.snapshot_step(step) for step in range(steps)} - {0}
    assert all(snapshots.snapshot_step(step) <= max(0, step - (0 if moves else every)) for step in range(steps))


def test_wait_for_returns_once_the_snapshot_is_published(tmp_path):
    snapshots, found = make_snapshots(tmp_path), []
    assert snapshots.wait_for(7) == ""
    waiting = threading.Thread(target=lambda: found.append(snapshots.wait_for(8)))
    waiting.start()
    snapshots.partial_path(4).mkdir()
    time.sleep(0.5)
    assert found == []
    snapshots.publish(4)
    waiting.join(10)
    assert found == [str(snapshots.path(4))]


def test_a_partial_snapshot_is_not_published(tmp_path):
    """As a killed writer leaves it."""
    snapshots = make_snapshots(tmp_path)
    snapshots.partial_path(4).mkdir()
    assert not snapshots.path(4).is_dir()
    (snapshots.partial_path(4) / "model").touch()
    snapshots.publish(4)
    publish(snapshots, 4)  # a step that is taken again
    assert list(snapshots.path(4).iterdir()) == []


@pytest.mark.parametrize(
    ("finished", "published", "missing"),
    [(0, (), None), (7, (4,), None), (8, (4,), None), (8, (), 4), (13, (8, 12), None), (13, (12,), 8), (20, (), None)],
)
def test_first_missing_snapshot_of_a_resumed_training(tmp_path, finished, published, missing):
    """The snapshot of the resumed step itself (8 after 8 steps) is not missing, because it is published again."""
    snapshots = make_snapshots(tmp_path)
    publish(snapshots, *published)
    assert snapshots.first_missing(finished) == missing


@pytest.mark.parametrize(("finished", "published", "missing"), [(8, (4,), None), (9, (8,), None), (9, (4,), 8)])
def test_a_resumed_training_needs_the_snapshot_that_is_its_reference(tmp_path, finished, published, missing):
    snapshots = make_snapshots(tmp_path, moves_reference=True)
    publish(snapshots, *published)
    assert snapshots.first_missing(finished) == missing


def test_prune_removes_old_and_stale_snapshots(tmp_path):
    snapshots = make_snapshots(tmp_path)
    publish(snapshots, 4, 8, 12)
    snapshots.prune(12, 20)  # step 12 samples from the policy after 8 steps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after-000008", "after-000012"]
    snapshots.prune(0, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["after-000008"]
