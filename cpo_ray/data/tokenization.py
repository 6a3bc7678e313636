"""Tokenizers: trained on the training split, or loaded from a folder or the hub."""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cpo_ray.config import TokenizerConfig
from cpo_ray.errors import DataError
from cpo_ray.records import Tokens

EOS = "<|endoftext|>"
PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Words and punctuation keep the space before them, as in GPT-2. Each digit is its own token, as in Llama."""

LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)

SAMPLE = "Add 3 and 4."

Tokenizer = Any  # transformers.PreTrainedTokenizerFast, which has no types to import


def make_tokenizer(config: TokenizerConfig, training_texts: Iterable[str]) -> Tokenizer:
    """The configured tokenizer, with EOS. `training_texts` are used only if it is trained.

    Raises DataError if it cannot be loaded or has no EOS token.
    """
    if config.path is None:
        return train_tokenizer(training_texts, config.vocabulary_size)
    return load_tokenizer(config.path)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """A byte-level BPE, which encodes and decodes any text without loss. Equal texts give equal tokenizers.

    The vocabulary is smaller than `vocabulary_size` if the texts run out of pairs to merge.
    """
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _wrap(backend)


def load_tokenizer(path: str, *, local_only: bool = False) -> Tokenizer:
    """Load a directory (Hugging Face, or `*vocab.json` and `*merges.txt`) or a hub id. No remote code is run.

    local_only: do not download a hub id. Raises DataError if it cannot be loaded or has no EOS token.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "tokenizer.json").exists() and not (folder / "tokenizer_config.json").exists():
        vocabularies, merges = sorted(folder.glob("*vocab.json")), sorted(folder.glob("*merges.txt"))
        if len(vocabularies) == len(merges) == 1:
            return _load_gpt2(vocabularies[0], merges[0])
    elif not folder.is_dir() and (folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1):
        raise DataError(f"data.tokenizer.path: there is no directory {path}")
    return _load_pretrained(path, local_only)


def encode(tokenizer: Tokenizer, texts: Sequence[str], *, special: bool) -> list[Tokens]:
    """Token ids of each text. `special` adds the special tokens that the tokenizer puts before a text (Llama's BOS).

    Those that it puts after a text (EOS, if it was made with `add_eos_token`) are never added: the text goes on. A special
    token that is spelled out in a text (`<|endoftext|>`) is encoded as text, never as that token.
    """
    leading = leading_tokens(tokenizer) if special else []
    return [[*leading, *ids] for ids in _encode(tokenizer, texts, special=False)]


def leading_tokens(tokenizer: Tokenizer) -> Tokens:
    """The special tokens that the tokenizer's post-processor puts before a text, each once in a row.

    Raises DataError for a tokenizer that changes the text's own tokens when it adds special ones.
    """
    (ids,), (around,) = (_encode(tokenizer, [SAMPLE], special=special) for special in (False, True))
    starts = range(len(around) - len(ids) + 1)
    start = next((start for start in starts if around[start : start + len(ids)] == ids), None)
    if start is None or not ids:
        raise DataError(
            f"data.tokenizer.path: the tokenizer encodes {SAMPLE!r} as {ids}, but with its special tokens as {around}, which "
            "does not contain that. Correct its post-processor."
        )
    return [token for token, _ in itertools.groupby(around[:start])]


def _encode(tokenizer: Tokenizer, texts: Sequence[str], *, special: bool) -> list[Tokens]:
    encoded = tokenizer(list(texts), add_special_tokens=special, split_special_tokens=True, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]


def _wrap(backend: Any) -> Tokenizer:
    from tokenizers import decoders
    from transformers import PreTrainedTokenizerFast

    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=EOS, pad_token=EOS, clean_up_tokenization_spaces=False
    )


def _load_gpt2(vocabulary_file: Path, merges_file: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    vocabulary = _read_vocabulary(vocabulary_file)
    merges = _read_merges(merges_file, vocabulary)
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _wrap(backend)


def _read_vocabulary(file: Path) -> dict[str, int]:
    try:
        vocabulary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not a JSON vocabulary: {error}") from None
    if not isinstance(vocabulary, dict) or not all(type(index) is int and index >= 0 for index in vocabulary.values()):
        raise DataError(f"{file} is not a vocabulary: an object from token to id is expected")
    if EOS not in vocabulary:
        raise DataError(f"{file} has no {EOS}, which ends every response")
    return vocabulary


def _read_merges(file: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: byte {error.start}") from None
    merges = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise DataError(f"{file}:{number}: the merge {line!r} uses a token that is not in the vocabulary")
        merges.append((left, right))
    return merges


def _load_pretrained(path: str, local_only: bool) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=local_only, trust_remote_code=False)
    except Exception as error:
        # `tokenizers` raises a bare Exception for a file that it cannot read. Of the subclasses, only LOAD_ERRORS are caught.
        if type(error) is not Exception and not isinstance(error, LOAD_ERRORS):
            raise
        first_line = str(error).strip().split("\n")[0]
        raise DataError(
            f"data.tokenizer.path: {path} cannot be loaded as a tokenizer, neither as a directory (with tokenizer.json, "
            f"or with one *vocab.json and one *merges.txt) nor as a hub id: {type(error).__name__}: {first_line}"
        ) from None
    if tokenizer.eos_token_id is None:
        raise DataError(f"data.tokenizer.path: the tokenizer {path} has no EOS token, which ends every response")
    return tokenizer
