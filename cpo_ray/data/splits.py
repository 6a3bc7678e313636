"""Assigns rows to splits by the seed and the prompt's content, independent of the order of the file."""

from collections.abc import Mapping, Sequence

from cpo_ray.data.rows import content_hash
from cpo_ray.errors import DataError

SPLITS = ("train", "validation", "test")
FILL_ORDER = ("test", "validation", "train")  # so that the test rows do not depend on the sizes of the other two


def split_prompts(
    prompts: Sequence[str], sizes: Mapping[str, int], seed: int, remark: str = ""
) -> dict[str, list[int]]:
    """Indices into `prompts` for each split, exactly as many as `sizes` asks for, in shuffled order.

    All rows with the same prompt are in the same split (or all left out). Raises DataError, with the arithmetic, if there
    are too few rows (`remark` is added there), or if a split cannot be filled exactly without separating rows of one prompt.
    """
    wanted = sum(sizes.values())
    if wanted > len(prompts):
        terms = " + ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(
            f"the data has {len(prompts)} usable rows, but {terms} = {wanted}: {wanted - len(prompts)} too few. "
            f"Lower data.train_rows, data.validation_rows or data.test_rows.{remark}"
        )
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    remaining = sorted(groups.values(), key=lambda group: content_hash(seed, "split", prompts[group[0]]))

    splits = {}
    for name in FILL_ORDER:
        taken, remaining = _fill(name, sizes[name], remaining)
        splits[name] = _shuffle(taken, prompts, seed)
    return {name: splits[name] for name in SPLITS}


def _fill(name: str, size: int, groups: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Take groups in order, skipping those that do not fit. Returns the taken and the skipped groups."""
    taken, skipped, room = [], [], size
    for group in groups:
        if len(group) <= room:
            taken.append(group)
            room -= len(group)
        else:
            skipped.append(group)
    if room:
        smallest = min(map(len, skipped), default=0)
        raise DataError(
            f"data.{name}_rows {size} cannot be filled: {size - room} rows fit, and each remaining prompt has at least "
            f"{smallest} rows, which must stay together. Set data.{name}_rows to {size - room}."
        )
    return taken, skipped


def _shuffle(groups: list[list[int]], prompts: Sequence[str], seed: int) -> list[int]:
    """All indices, so that rows of one prompt are no longer adjacent (adjacent rows exchange responses as batch negatives)."""
    keyed = [(content_hash(seed, "order", prompts[row], n), row) for group in groups for n, row in enumerate(group)]
    return [row for _, row in sorted(keyed)]
