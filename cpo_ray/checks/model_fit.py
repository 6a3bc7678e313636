"""Do a pretrained model, its tokenizer and the configured lengths fit together?

Called by `cpo-ray validate`, by stage `data`, and before the reference is trained. A pair that does not fit would train without
an error: the ids of one tokenizer mean other tokens in the model of another.
"""

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cpo_ray.config import RunConfig, TrainingConfig
from cpo_ray.errors import ConfigError, DataError
from cpo_ray.inference.model_facts import ModelFacts, is_local, read_model_facts
from cpo_ray.inference.weight_files import check_one_set_of_weights
from cpo_ray.objective.known_architectures import architecture_fault

SAMPLES = ("Add 3 and 4.", "The sum of 19 and 23 is 42, isn't it? Yes!", "A list: one, two (three) and four.")
RENAMED = 0.01
"""A share of the tokens may have other names than in the model's own tokenizer: models reserve ids that users rename."""

OWN_TOKENIZER = "Leave out data.tokenizer.path to use the model's own tokenizer"
BASE_MODEL = " For a base model, set data.chat.use=never: then data.template is used, and not a chat template."
OWN_IS_WRONG = "This is the model's own tokenizer: set data.tokenizer.path to the one it was trained with"


def check_model_fit(
    config: RunConfig,
    load_tokenizer: Callable[[str], Any],
    *,
    tokenizer_path: str | None = None,
    local_only: bool = False,
) -> str | None:
    """Compare `model.path` with the tokenizer at `tokenizer_path` (by default, `data.tokenizer.path`) and with the lengths.

    load_tokenizer: raises DataError for one that cannot be loaded. local_only: do not download; returns a line if the model or
    the tokenizer is a hub id that is not on this machine. Raises ConfigError with all that does not fit, and ArtifactError
    for a directory with two sets of weights.
    """
    model, tokenizer_path = config.model.path, tokenizer_path or config.data.tokenizer.path
    if model is None or tokenizer_path is None:
        return None
    check_one_set_of_weights(Path(model))
    check_architecture(model, local_only=local_only)
    facts = read_model_facts(model, local_only=local_only)
    if facts is None:
        return f"model.path {model} is not on this machine: it is compared with the tokenizer and the lengths when it is loaded"
    found = [*length_faults(config, model, facts), *router_faults(config, model)]
    missing = None
    try:
        tokenizer = load_tokenizer(tokenizer_path)
    except DataError:
        if not local_only or is_local(tokenizer_path):
            raise
        missing = f"data.tokenizer.path {tokenizer_path} is not on this machine: it is compared when it is loaded"
    else:
        remedy = OWN_IS_WRONG if config.data.tokenizer.path == model else OWN_TOKENIZER
        found += tokenizer_faults(f"the tokenizer {tokenizer_path}", tokenizer, f"model.path {model}", facts, remedy)
        if tokenizer_path != model:
            found += _other_tokens(tokenizer_path, tokenizer, model, load_tokenizer)
    if found:
        raise ConfigError("\n".join(found))
    return missing


def check_architecture(model: str, *, local_only: bool = False) -> None:
    """Raise ConfigError for a model whose architecture transformers does not have as a causal language model.

    A config.json that cannot be read is left to `read_model_facts`.
    """
    from transformers import PreTrainedConfig

    try:
        settings, _ = PreTrainedConfig.get_config_dict(model, local_files_only=local_only)
    except (OSError, ValueError):
        return
    fault = architecture_fault(model, settings)
    if fault is not None:
        raise ConfigError(f"model.path: {fault}")


def length_faults(config: RunConfig, model: str, facts: ModelFacts) -> Iterator[str]:
    """The longest prompt and response that do not fit into the model's context, with the arithmetic."""
    if facts.context is not None and (excess := config.context_excess(facts.context)):
        yield (
            f"{excess} exceeds the {facts.context} positions of model.path {model}: lower one of them, or use a model with a "
            "longer context."
        )


def router_faults(config: RunConfig, model: str) -> Iterator[str]:
    """An auxiliary loss of routers that the model does not have."""
    keys = [f"{name}.router_auxiliary_loss" for name in ("reference", "training") if _coefficient(config, name)]
    if not keys:
        return
    from transformers import AutoConfig

    from cpo_ray.objective.routers import router_fault

    settings = AutoConfig.from_pretrained(model, trust_remote_code=False)  # `read_model_facts` has read it
    fault = router_fault(settings)
    if fault is not None:
        yield f"{' and '.join(keys)}: {fault}, as model.path {model} is. Set it to 0."


def tokenizer_faults(name: str, tokenizer: Any, model: str, facts: ModelFacts, remedy: str) -> Iterator[str]:
    """What does not fit between a tokenizer and a model: ids without an embedding, special tokens, texts that get lost.

    name, model, remedy: what the messages call them, and advise. An embedding may have more rows than the tokenizer has tokens.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= facts.vocabulary:
        yield (
            f"{name} has {len(tokenizer)} tokens with ids up to {largest}, but {model} has {facts.vocabulary} embeddings, for "
            f"ids up to {facts.vocabulary - 1}. {remedy}, or first enlarge the model's embeddings (resize_token_embeddings)."
        )
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if facts.eos and eos not in facts.eos:
        yield (
            f"{name} ends a text with the token {eos} ({tokenizer.eos_token}), but {model} with {_list(facts.eos)} "
            f"(eos_token_id of config.json and generation_config.json). {remedy}, or correct eos_token_id where it is wrong."
            f"{BASE_MODEL if tokenizer.chat_template else ''}"
        )
    # A BOS that the tokenizer does not put before a text is in no prompt, so it makes no difference.
    if bos is not None and facts.bos not in (None, bos) and tokenizer("x")["input_ids"][:1] == [bos]:
        yield (
            f"{name} begins a text with the token {bos} ({tokenizer.bos_token}), but {model} with {facts.bos} (bos_token_id of "
            f"config.json). {remedy}, or correct bos_token_id where it is wrong."
        )
    for text in SAMPLES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = tokenizer.decode(ids)
        if _letters(decoded) != _letters(text):
            yield f"{name} encodes {text!r} as {ids}, which it decodes as {decoded!r}. Use a tokenizer that keeps the text."
            return


def _other_tokens(path: str, tokenizer: Any, model: str, load_tokenizer: Callable[[str], Any]) -> Iterator[str]:
    """Ids that mean other tokens in the model's own tokenizer, if it has one."""
    try:
        own = load_tokenizer(model)
    except DataError:
        return
    names = {index: token for token, index in own.get_vocab().items()}
    other = [(i, token) for token, i in tokenizer.get_vocab().items() if names.get(i, token) != token]
    if len(other) > RENAMED * len(names):
        index, token = min(other)
        yield (
            f"{len(other)} of the {len(tokenizer)} ids of the tokenizer {path} mean other tokens in the {len(names)} of "
            f"model.path {model}: {index} is {token!r}, but there {names[index]!r}. {OWN_TOKENIZER}."
        )


def _coefficient(config: RunConfig, section: str) -> float:
    training: TrainingConfig = getattr(config, section)
    return training.router_auxiliary_loss


def _letters(text: str) -> str:
    """What a tokenizer must keep: all but white space, case, and the composition of characters."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _list(ids: tuple[int, ...]) -> str:
    return " or ".join(map(str, ids))
