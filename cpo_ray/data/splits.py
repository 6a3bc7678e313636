"""Assigns rows to splits by the seed and the prompt's content, independent of the order of the file."""

from collections.abc import Mapping, Sequence

from cpo_ray.config.split_sizes import count_rows, is_share, takes_all
from cpo_ray.data.rows import content_hash
from cpo_ray.errors import DataError

SPLITS = ("train", "validation", "test")
FILL_ORDER = ("test", "validation", "train")  # so that the test rows do not depend on the sizes of the other two


def split_prompts(
    prompts: Sequence[str], sizes: Mapping[str, float], seed: int, remark: str = ""
) -> dict[str, list[int]]:
    """Indices into `prompts` for each split, in shuffled order: exactly as many as `sizes` asks for, or a share of them.

    All rows with the same prompt are in the same split (or all left out). So a share may get fewer rows than it asks for; if
    the shares add up to 1, `train` gets all that the others do not. Raises DataError, with the arithmetic, if there are too few
    rows (`remark` is added there), or if a number of rows cannot be filled exactly without separating rows of one prompt.
    """
    counts = count_rows(sizes, len(prompts))
    wanted = sum(counts.values())
    if wanted > len(prompts):
        terms = " + ".join(f"{name} {_describe(sizes[name], count)}" for name, count in counts.items())
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
        if name == FILL_ORDER[-1] and takes_all(sizes):
            taken, remaining = remaining, []
        else:
            taken, remaining = _fill(name, counts[name], remaining, exactly=not is_share(sizes[name]))
        if counts[name] and not taken:
            raise DataError(
                f"no row is left for the split `{name}` (data.{name}_rows {sizes[name]:g}): the {len(prompts)} usable rows "
                f"have {len(groups)} different prompts, and rows of one prompt must stay together.{remark}"
            )
        splits[name] = _shuffle(taken, prompts, seed)
    return {name: splits[name] for name in SPLITS}


def _describe(size: float, count: int) -> str:
    return f"{count} (share {size:g})" if is_share(size) else str(count)


def _fill(name: str, size: int, groups: list[list[int]], *, exactly: bool) -> tuple[list[list[int]], list[list[int]]]:
    """Take groups in order, skipping those that do not fit. Returns the taken and the skipped groups."""
    taken, skipped, room = [], [], size
    for group in groups:
        if len(group) <= room:
            taken.append(group)
            room -= len(group)
        else:
            skipped.append(group)
    if room and exactly:
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
