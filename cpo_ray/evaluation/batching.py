"""Batches of texts with different lengths, with little padding."""

from collections.abc import Iterator, Sequence


def batch_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield every index once, in batches of at most `batch_tokens` tokens with padding; a batch has at least one text.

    The longest texts come first, so that a batch that does not fit into memory (OOM) fails at the start.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
