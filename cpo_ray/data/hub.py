"""A dataset on the Hugging Face hub: loaded by `datasets`, whatever its format, and saved locally as JSONL."""

from functools import cache
from pathlib import Path

from cpo_ray.artifacts import write_atomically
from cpo_ray.errors import DataError


@cache
def fetch_rows(name: str) -> Path:
    """The `train` split of the dataset `owner/name` as a JSONL file in the cache of `datasets`.

    A revision that is already cached is not downloaded again. Raises DataError if the hub has no such dataset, cannot be
    reached, or `datasets` cannot read it.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"data.path: there is no file or folder {name}, and it cannot be read as a dataset on the Hugging Face hub: "
            f"{reason}. Name another one, or one of its files, for instance data.path=hf://datasets/{name}/train.jsonl"
        ) from None
    if not rows.cache_files:
        raise DataError(f"data.path: the dataset {name} on the Hugging Face hub has no rows")
    file = Path(rows.cache_files[0]["filename"]).with_suffix(".jsonl")
    if not file.is_file():
        with write_atomically(file) as temporary:
            rows.to_json(temporary, lines=True, force_ascii=False)
    return file
