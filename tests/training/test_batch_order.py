import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.training.batch_order import BatchOrder, split_batch


def test_an_epoch_holds_every_row_once():
    order = BatchOrder(rows=10, size=5, seed=3)
    assert sorted(order.at(0) + order.at(1)) == list(range(10))
    assert order.at(0) + order.at(1) != order.at(2) + order.at(3)


def test_an_epoch_may_end_inside_a_batch():
    order = BatchOrder(rows=7, size=4, seed=3)
    stream = [row for step in range(7) for row in order.at(step)]
    assert all(sorted(stream[i : i + 7]) == list(range(7)) for i in range(0, 28, 7))


@pytest.mark.parametrize(("workers", "microbatches"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_the_global_batch_does_not_depend_on_the_number_of_workers(workers, microbatches):
    batch = BatchOrder(rows=100, size=16, seed=5).at(3)
    parts = split_batch(batch, [row % 7 for row in batch], workers, microbatches)
    assert sorted(row for worker in parts for microbatch in worker for row in microbatch) == sorted(batch)
    assert {len(microbatch) for worker in parts for microbatch in worker} == {16 // (workers * microbatches)}


@given(st.lists(st.integers(1, 500), min_size=32, max_size=32))
def test_rows_are_split_evenly_by_cost(costs):
    parts = split_batch(list(range(32)), costs, workers=2, microbatches=2)
    loads = [sum(costs[i] for m in worker for i in m) for worker in parts]
    assert abs(loads[0] - loads[1]) <= 2 * max(costs)
