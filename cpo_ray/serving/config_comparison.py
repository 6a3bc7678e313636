"""Compare two models' config.json by what transformers reads from it.

transformers 4 and 5 write the same model differently (`torch_dtype` and `dtype`, `rope_theta` and `rope_parameters`, keys left
at their defaults). Loading both with AutoConfig removes these differences.
"""

from pathlib import Path
from typing import Any

from cpo_ray.serving.comparison import BOOKKEEPING, CONFIG, Differences, describe_values, differing_keys, read_object

# Keys that change neither a token nor a number. The dtype is compared in the weights themselves.
NO_EFFECT = BOOKKEEPING | {"use_cache", "dtype", "torch_dtype", "initializer_range", "_attn_implementation_autoset"}


def compare_configs(model: Path, other: Path) -> Differences:
    """Compare the configurations as transformers loads them; a configuration that it cannot load, key by key as stored."""
    stored = read_object(model / CONFIG), read_object(other / CONFIG)
    changed = list(differing_keys(*stored))
    if set(changed) <= NO_EFFECT:
        return Differences(change_nothing=_say(changed))
    try:
        loaded = load_config(model).to_dict(), load_config(other).to_dict()
    except LoadError as error:
        kept = _refuse(*stored)
        return Differences(refused=[*kept, f"config: compared as it is stored, because {error}"])
    refused = _refuse(*loaded)
    return Differences(refused=refused, change_nothing=[] if refused else _say(changed))


class LoadError(Exception):
    """transformers cannot load a configuration or a tokenizer."""


def load_config(model: Path) -> Any:
    """The configuration, loaded by transformers without remote code. Raises LoadError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise LoadError(f"transformers cannot load {model / CONFIG}: {first_line}") from None


def _refuse(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    return [
        f"config: {key!r} differs: {describe_values(left.get(key), right.get(key))}"
        for key in differing_keys(left, right)
        if key not in NO_EFFECT
    ]


def _say(keys: list[str]) -> list[str]:
    return [f"{CONFIG} {key!r}" for key in keys]
