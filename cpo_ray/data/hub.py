"""A dataset on the Hugging Face hub: loaded by `datasets`, whatever its format, and saved locally as JSONL."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import write_atomically
from cpo_ray.errors import DataError

SPLIT = "train"


@cache
def fetch_rows(name: str, subset: str | None = None, split: str | None = None, revision: str | None = None) -> Path:
    """A split of the dataset `owner/name` as a JSONL file in the cache of `datasets`.

    subset: a configuration of the dataset; None is its only or default one. split: `train` by default, or a part of a split
    (`train[:10%]`). A revision that is already cached is not downloaded again. Raises DataError if the hub has no such dataset,
    subset or split (naming those that it has), cannot be reached, or `datasets` cannot read it.
    """
    import datasets

    if revision is not None:
        _check_revision(name, revision)
    datasets.disable_progress_bars()
    options = {key: value for key, value in (("name", subset), ("revision", revision)) if value is not None}
    try:
        rows = datasets.load_dataset(name, split=split or SPLIT, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _explain(name, subset, split or SPLIT, revision, error) from None
    if not rows.cache_files:
        raise DataError(f"data.path: the dataset {name} on the Hugging Face hub has no rows")
    cached = Path(rows.cache_files[0]["filename"])
    file = cached.with_suffix(".jsonl")
    if split is not None and not split.isidentifier():  # a part, or several splits: the cached file has other rows too
        file = cached.with_name(f"{cached.stem}-{hashlib.sha256(split.encode()).hexdigest()[:8]}.jsonl")
    if not file.is_file():
        with write_atomically(file) as temporary:
            rows.to_json(temporary, lines=True, force_ascii=False)
    return file


def _check_revision(name: str, revision: str) -> None:
    """Raise DataError for a revision that does not exist: `datasets` would silently use whatever revision is cached."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        HfApi().dataset_info(name, revision=revision)
    except RevisionNotFoundError:
        raise DataError(
            f"data.revision: the dataset {name} on the Hugging Face hub has no revision {revision!r}: name a branch, a tag or "
            "a commit, or leave it out for the newest"
        ) from None
    except (OSError, HTTPError):
        return  # loading reports what is wrong, or uses the cache


def _explain(name: str, subset: str | None, split: str, revision: str | None, error: Exception) -> DataError:
    """What is wrong with a dataset that cannot be loaded: its name, or a subset or split that it does not have."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    subsets, splits = _contents(name, subset, revision)
    if subsets and subset is None and len(subsets) > 1 and splits is None:
        return DataError(
            f"data.path: the dataset {name} on the Hugging Face hub has several subsets: {', '.join(subsets)}. Name one "
            "with data.subset"
        )
    if subsets and subset is not None and subset not in subsets:
        return DataError(
            f"data.subset: the dataset {name} on the Hugging Face hub has no subset {subset!r}; it has {', '.join(subsets)}"
        )
    if splits and split.partition("[")[0] not in splits:
        return DataError(
            f"data.split: the dataset {name} on the Hugging Face hub has no split {split!r}; it has {', '.join(splits)}. "
            "Name one with data.split"
        )
    return DataError(
        f"data.path: there is no file or folder {name}, and it cannot be read as a dataset on the Hugging Face hub: "
        f"{reason}. Name another one, or one of its files, for instance data.path=hf://datasets/{name}/train.jsonl"
    )


def _contents(name: str, subset: str | None, revision: str | None) -> tuple[list[str], list[str] | None]:
    """The dataset's subsets, and the splits of the chosen one; nothing if the hub does not say."""
    import datasets

    failures = (OSError, ValueError, datasets.exceptions.DatasetsError)
    options: dict[str, Any] = {"revision": revision}
    try:
        subsets = list(datasets.get_dataset_config_names(name, **options))
    except failures:
        return [], None
    try:
        return subsets, list(datasets.get_dataset_split_names(name, subset, **options))
    except failures:
        return subsets, None
