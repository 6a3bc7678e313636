import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.training.batch_order import Batches, deal


def test_an_epoch_holds_every_row_once():
    batches = Batches(rows=10, size=5, seed=3)
    assert sorted(batches.at(0) + batches.at(1)) == list(range(10))
    assert batches.at(0) + batches.at(1) != batches.at(2) + batches.at(3)


def test_an_epoch_may_end_within_a_batch():
    batches = Batches(rows=7, size=4, seed=3)
    stream = [row for step in range(7) for row in batches.at(step)]
    assert all(sorted(stream[i : i + 7]) == list(range(7)) for i in range(0, 28, 7))


@pytest.mark.parametrize(("workers", "microbatches"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_the_global_batch_does_not_depend_on_the_topology(workers, microbatches):
    batch = Batches(rows=100, size=16, seed=5).at(3)
    hands = deal(batch, [row % 7 for row in batch], workers, microbatches)
    assert sorted(row for worker in hands for microbatch in worker for row in microbatch) == sorted(batch)
    assert {len(microbatch) for worker in hands for microbatch in worker} == {16 // (workers * microbatches)}


@given(st.lists(st.integers(1, 500), min_size=32, max_size=32))
def test_work_is_dealt_evenly(costs):
    hands = deal(list(range(32)), costs, workers=2, microbatches=2)
    loads = [sum(costs[i] for m in worker for i in m) for worker in hands]
    assert abs(loads[0] - loads[1]) <= 2 * max(costs)
