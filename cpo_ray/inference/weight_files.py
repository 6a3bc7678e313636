"""Which safetensors files hold a model directory's weights; directories with a second set of weights are refused.

transformers 5.19 loads `model.safetensors` if it is there, otherwise the files that the index names. vLLM 0.32 loads the
files that the index names, without an index every `*.safetensors` file, and `consolidated*.safetensors` before all others.
So with a left-over file a model is trained from other weights than are served.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from cpo_ray.errors import ArtifactError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def check_one_set_of_weights(model: Path) -> None:
    """Raise ArtifactError, with the files to delete, if the directory holds safetensors files besides its weights.

    Accepts `model.safetensors` alone, or an index and exactly the files that it names. A directory with neither is
    accepted: its loader reports that there are no weights.
    """
    stored = {file.name for file in model.glob("*.safetensors") if file.is_file()}
    if (model / INDEX).is_file():
        named = set(read_index(model / INDEX).values())
        if WEIGHTS in stored and named != {WEIGHTS}:
            raise ArtifactError(_explain_two_sets(model, stored, named))
        if spare := stored - named:
            raise ArtifactError(f"{model} holds {_list(spare)}, which {INDEX} does not name. {_advise(spare)}")
    elif WEIGHTS in stored and (spare := stored - {WEIGHTS}):
        raise ArtifactError(
            f"{model} holds two sets of weights: {WEIGHTS}, the only file that transformers loads, and {_list(spare)}. "
            f"Without an index vLLM loads every safetensors file. {_advise(spare)}"
        )


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index of safetensors files.

    Raises ArtifactError if it is not such an index, or names a file in another directory.
    """
    try:
        places = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is not an index of safetensors files: {error!r}") from None
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ArtifactError(f"{path} names the file {name!r}, which is not beside it")
    return places


def _explain_two_sets(model: Path, stored: set[str], named: set[str]) -> str:
    shards = named - {WEIGHTS}
    if missing := shards - stored:
        return (
            f"{model} holds two sets of weights: {WEIGHTS}, which transformers loads, and {INDEX}, which vLLM reads; but it "
            f"names {_list(missing)}, which does not exist. Delete {INDEX} if {WEIGHTS} is the model."
        )
    return (
        f"{model} holds two sets of weights: {WEIGHTS}, which transformers loads, and the files of {INDEX}, which vLLM loads "
        f"({_list(shards)}). Keep the right one: delete {WEIGHTS}, or {INDEX} and the files that it names."
    )


def _advise(spare: set[str]) -> str:
    return f"Delete {'it' if len(spare) == 1 else 'them'} if left over from another model."


def _list(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")
