import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.inference.policy_snapshots import PolicyShelf


def shelf(folder, every=4, steps=20):
    folder.mkdir(exist_ok=True)
    return PolicyShelf(folder, every, steps)


def put(shelf, *ages):
    for age in ages:
        shelf.desk(age).mkdir()
        shelf.put(age)


def test_the_policy_of_a_step_is_one_to_two_periods_old(tmp_path):
    ages = [shelf(tmp_path).age_at(step) for step in range(20)]
    assert ages == [0] * 8 + [4] * 4 + [8] * 4 + [12] * 4
    assert {PolicyShelf(tmp_path, None, 20).age_at(step) for step in range(20)} == {0}


@given(every=st.integers(1, 9), steps=st.integers(1, 50))
def test_what_is_put_there_is_what_is_waited_for_and_no_step_waits_for_its_own_future(tmp_path_factory, every, steps):
    shelf = PolicyShelf(tmp_path_factory.getbasetemp(), every, steps)
    wanted = {finished for finished in range(steps + 1) if shelf.wanted(finished)}
    assert wanted == {shelf.age_at(step) for step in range(steps)} - {0}
    assert all(shelf.age_at(step) <= max(0, step - every) for step in range(steps))


def test_a_step_waits_until_its_policy_is_whole(tmp_path):
    mine, found = shelf(tmp_path), []
    assert mine.wait_at(7) == ""
    waiting = threading.Thread(target=lambda: found.append(mine.wait_at(8)))
    waiting.start()
    mine.desk(4).mkdir()
    time.sleep(0.5)
    assert found == []
    mine.put(4)
    waiting.join(10)
    assert found == [str(mine.place(4))]


def test_what_a_killed_writer_left_is_no_policy(tmp_path):
    mine = shelf(tmp_path)
    mine.desk(4).mkdir()
    assert not mine.place(4).is_dir()
    (mine.desk(4) / "model").touch()
    mine.put(4)
    put(mine, 4)  # a step that is taken again
    assert list(mine.place(4).iterdir()) == []


@pytest.mark.parametrize(
    ("finished", "there", "lacking"),
    [(0, (), None), (7, (4,), None), (8, (4,), None), (8, (), 4), (13, (8, 12), None), (13, (12,), 8), (20, (), None)],
)
def test_a_training_knows_what_it_would_wait_for_in_vain(tmp_path, finished, there, lacking):
    """The policy of just now (8 after 8 steps) is put there again, so it is not missed."""
    mine = shelf(tmp_path)
    put(mine, *there)
    assert mine.lacking(finished) == lacking


def test_old_policies_and_those_of_another_life_go(tmp_path):
    mine = shelf(tmp_path)
    put(mine, 4, 8, 12)
    mine.keep(12, 20)  # step 12 samples from the policy of 8 steps
    assert sorted(place.name for place in tmp_path.iterdir()) == ["after-000008", "after-000012"]
    mine.keep(0, 8)
    assert [place.name for place in tmp_path.iterdir()] == ["after-000008"]
