"""What a model's directory says about it without its weights: vocabulary, context, and the tokens that begin and end a text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ray.artifacts.adapter_files import is_adapter_alone
from cpo_ray.errors import ConfigError

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True)
class ModelFacts:
    """Facts from `config.json` and `generation_config.json`."""

    vocabulary: int  # rows of the embedding
    context: int | None  # positions; None if the architecture sets no limit
    bos: int | None
    eos: tuple[int, ...]  # the tokens that end a text by either file
    stops: tuple[int, ...]  # the tokens that end a generation: those of generation_config.json, if it names any


def read_model_facts(path: str | Path, *, local_only: bool = False, key: str = "model.path") -> ModelFacts | None:
    """Read a Hugging Face directory or hub id; no remote code is run.

    local_only: do not download; None for a hub id that is not on this machine. key: the configuration key with the path, for
    errors. Raises ConfigError for a directory that is missing or not a model, and for a hub id that cannot be loaded.
    """
    from transformers import AutoConfig, GenerationConfig

    options: dict[str, Any] = {"local_files_only": local_only, "trust_remote_code": False}
    if is_local(path) and not Path(path).is_dir():
        raise ConfigError(f"{key}: there is no directory {path}")
    if is_adapter_alone(Path(path)):
        raise ConfigError(
            f"{key} {path} holds an adapter without the weights of its base. Make the model again with adapter.export: merged, "
            "or merge the two: merge_and_unload of peft"
        )
    try:
        config: Any = AutoConfig.from_pretrained(path, **options).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        if local_only and not is_local(path):
            return None
        raise ConfigError(f"{key} {path} cannot be read as a model: {str(error).strip().splitlines()[0]}") from None
    try:
        generation: Any = GenerationConfig.from_pretrained(path, local_files_only=local_only)
    except OSError:  # many models have none
        generation = None
    context = next((value for key in POSITIONS if isinstance(value := getattr(config, key, None), int)), None)
    bos, of_model, of_generation = getattr(config, "bos_token_id", None), _ids(config), _ids(generation)
    eos = tuple(dict.fromkeys((*of_model, *of_generation)))
    return ModelFacts(config.vocab_size, context, bos, eos, stops=of_generation or of_model)


def is_local(path: str | Path) -> bool:
    """Whether `path` is a directory on this machine, or can only be meant as one: hub ids have the form `owner/name`."""
    text = str(path)
    return Path(path).is_dir() or Path(path).is_absolute() or text.startswith((".", "~")) or text.count("/") > 1


def _ids(config: Any) -> tuple[int, ...]:
    """`eos_token_id`, which may be absent, one id, or several."""
    ids = getattr(config, "eos_token_id", None)
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
