from cpo_ray.evaluation.batching import batch_by_length


def test_batches_are_full_and_begin_with_the_longest_texts():
    assert list(batch_by_length([3, 10, 1, 4, 2], 10)) == [[1], [3, 0], [4, 2]]
    assert list(batch_by_length([3, 10], 1)) == [[1], [0]]
    assert list(batch_by_length([], 10)) == []
