"""A data set on the Hugging Face hub: read by `datasets`, whatever it is stored in, and laid down here as JSONL."""

from functools import cache
from pathlib import Path

from cpo_ray.artifacts import write_atomically
from cpo_ray.errors import DataError


@cache
def fetch_rows(name: str) -> Path:
    """The `train` split of the data set `owner/name` as a file in the cache of `datasets`, a row a line.

    A revision that is there already is not fetched again. Raises DataError where the hub has no such data set, cannot be
    reached, or `datasets` cannot read it.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"data.path: {name} is no file or folder here, and as a data set on the hub it cannot be read: {reason}. Name "
            f"another, or one of its files, for instance data.path=hf://datasets/{name}/train.jsonl"
        ) from None
    if not rows.cache_files:
        raise DataError(f"data.path: the data set {name} on the hub has no rows")
    file = Path(rows.cache_files[0]["filename"]).with_suffix(".jsonl")
    if not file.is_file():
        with write_atomically(file) as temporary:
            rows.to_json(temporary, lines=True, force_ascii=False)
    return file
