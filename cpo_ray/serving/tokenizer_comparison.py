"""Compare two models' tokenizers by what they do: vocabulary, merges, special tokens, chat template.

How a tokenizer was saved makes no difference: the padding and truncation of its last use, limits and padding side, special
tokens repeated in special_tokens_map.json, merges as pairs or as one text.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpo_ray.serving.comparison import Differences, describe_values, differing_keys, read_object
from cpo_ray.serving.config_comparison import LoadError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
# Parts of the `tokenizers` serialization that calls overwrite, so that they do not change tokens.
OF_THE_LAST_CALL = {"version", "padding", "truncation"}
LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
SETTINGS = ("clean_up_tokenization_spaces", "split_special_tokens")


def compare_tokenizers(model: Path, other: Path) -> Differences:
    """Compare the tokenizers as transformers loads them; a tokenizer that it cannot load, file by file as stored."""
    stored = list(_compare_files(model, other))
    if not stored:
        return Differences()
    try:
        refused = list(_compare_loaded(model, load_tokenizer(model), other, load_tokenizer(other)))
    except LoadError as error:
        kept = [f"tokenizer: {text} differs" for text in stored]
        return Differences(refused=[*kept, f"tokenizer: files compared as they are stored, because {error}"])
    return Differences(refused=refused, change_nothing=[] if refused else stored)


def load_tokenizer(model: Path) -> Any:
    """The tokenizer, loaded by transformers without remote code. Raises LoadError, also if Rust does not run it."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # `tokenizers` raises a bare Exception for a file that it cannot read.
        if type(error) is not Exception and not isinstance(error, LOAD_ERRORS):
            raise
        first_line = str(error).strip().split("\n")[0]
        raise LoadError(f"transformers cannot load the tokenizer of {model}: {first_line}") from None
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise LoadError(f"the tokenizer of {model} has no tokenizer.json, nor can one be made from its files")
    return tokenizer


def _compare_files(model: Path, other: Path) -> Iterator[str]:
    """Differences between the stored files: one per key of a JSON object, one per other file."""
    for name in TOKENIZER_FILES:
        ours, theirs = model / name, other / name
        if ours.is_file() != theirs.is_file():
            yield f"{name} only in {model if ours.is_file() else other}"
        elif ours.is_file() and ours.read_bytes() != theirs.read_bytes():
            if name.endswith(".json"):
                yield from (f"{name} {key!r}" for key in differing_keys(read_object(ours), read_object(theirs)))
            else:
                yield name


def _compare_loaded(model: Path, ours: Any, other: Path, theirs: Any) -> Iterator[str]:
    left, right = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (ours, theirs))
    yield from _compare_vocabularies(ours.get_vocab(), theirs.get_vocab())
    yield from _compare_merges(left["model"].pop("merges", []), right["model"].pop("merges", []))
    for tree in (left, right):  # compared above, and far too long for a message
        tree["model"].pop("vocab", None)
    for key in differing_keys(left, right):
        if key not in OF_THE_LAST_CALL:
            yield f"tokenizer: {key!r} differs: {describe_values(left.get(key), right.get(key))}"
    yield from _compare_special_tokens(model, ours, other, theirs)
    if _chat_templates(ours) != _chat_templates(theirs):
        yield f"tokenizer: the chat template differs: {describe_values(ours.chat_template, theirs.chat_template)}"
    for key in SETTINGS:
        if getattr(ours, key, None) != getattr(theirs, key, None):
            yield f"tokenizer: {key!r} differs: {describe_values(getattr(ours, key, None), getattr(theirs, key, None))}"


def _compare_vocabularies(left: dict[str, int], right: dict[str, int]) -> Iterator[str]:
    changed = sorted(token for token in left.keys() | right.keys() if left.get(token) != right.get(token))
    if changed:
        token = changed[0]
        ids = describe_values(left.get(token), right.get(token))
        yield f"tokenizer: the vocabulary differs in {len(changed)} tokens, for instance {token!r}: {ids}"


def _compare_merges(left: list[Any], right: list[Any]) -> Iterator[str]:
    if left != right:
        pairs = enumerate(zip(left, right, strict=False))
        first = next((number for number, (one, two) in pairs if one != two), min(len(left), len(right)))
        yield f"tokenizer: the merges differ, first at number {first}; there are {len(left)} and {len(right)}"


def _compare_special_tokens(model: Path, ours: Any, other: Path, theirs: Any) -> Iterator[str]:
    left, right = _special_tokens(ours), _special_tokens(theirs)
    for name in sorted(left.keys() | right.keys()):
        if left.get(name) != right.get(name):
            yield f"tokenizer: {name} is {left.get(name, 'none')} in {model}, {right.get(name, 'none')} in {other}"
    if set(ours.all_special_ids) != set(theirs.all_special_ids) and left == right:
        yield f"tokenizer: the special tokens differ: {sorted(ours.all_special_ids)} and {sorted(theirs.all_special_ids)}"


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    """Name (eos_token, ...) -> the token and its id."""
    return {
        name: ", ".join(
            f"{text!r} (id {tokenizer.convert_tokens_to_ids(text)})"
            for text in ([str(token)] if isinstance(token, str) else map(str, token))
        )
        for name, token in tokenizer.special_tokens_map.items()
        if token
    }


def _chat_templates(tokenizer: Any) -> Any:
    """The chat template, or several by name. A line feed at the end of the file is not part of it."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return {name: text.removesuffix("\n") for name, text in template.items()}
    return template.removesuffix("\n") if isinstance(template, str) else template
