"""Texts of unlike lengths, in batches of little padding."""

from collections.abc import Iterator, Sequence


def batch_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Every index once, in batches of at most `batch_tokens` tokens, padding included, but at least one text.

    The longest come first, so that what does not fit into memory shows at once.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
