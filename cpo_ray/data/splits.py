"""Which row goes where: decided by the seed and the prompt's content, never by the order of the file."""

from collections.abc import Mapping, Sequence

from cpo_ray.data.rows import content_hash
from cpo_ray.errors import DataError

SPLITS = ("train", "validation", "test")
FILL_ORDER = ("test", "validation", "train")  # so the test rows do not depend on the other two sizes


def split_prompts(prompts: Sequence[str], sizes: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Indices into `prompts` for each split of `sizes`, exactly as many as asked, in shuffled order.

    All rows with the same prompt fall into the same split (or are left out together). Raises DataError, with the
    arithmetic, where there are too few rows or where whole prompts cannot fill a split exactly.
    """
    wanted = sum(sizes.values())
    if wanted > len(prompts):
        terms = " + ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(
            f"the data has {len(prompts)} usable rows, but {terms} = {wanted}: {wanted - len(prompts)} too few. "
            "Lower data.train_rows, data.validation_rows or data.test_rows."
        )
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    waiting = sorted(groups.values(), key=lambda group: content_hash(seed, "split", prompts[group[0]]))

    splits = {}
    for name in FILL_ORDER:
        taken, waiting = _fill(name, sizes[name], waiting)
        splits[name] = _shuffle(taken, prompts, seed)
    return {name: splits[name] for name in SPLITS}


def _fill(name: str, size: int, groups: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Take groups in order, passing over those that do not fit. Returns the taken and the passed over."""
    taken, passed, room = [], [], size
    for group in groups:
        if len(group) <= room:
            taken.append(group)
            room -= len(group)
        else:
            passed.append(group)
    if room:
        smallest = min(map(len, passed), default=0)
        raise DataError(
            f"data.{name}_rows {size} cannot be filled: {size - room} rows fit, and of the prompts that are left even "
            f"the rarest has {smallest} rows, which must stay together. Choose data.{name}_rows {size - room}."
        )
    return taken, passed


def _shuffle(groups: list[list[int]], prompts: Sequence[str], seed: int) -> list[int]:
    """All indices, rows of one prompt no longer side by side (neighbours exchange responses as batch negatives)."""
    placed = [(content_hash(seed, "order", prompts[row], n), row) for group in groups for n, row in enumerate(group)]
    return [row for _, row in sorted(placed)]
