"""Texts as vectors, for MAUVE: a sentence embedder's, or a language model's state at a text's last token."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cpo_ray.config import MauveConfig
from cpo_ray.errors import ConfigError
from cpo_ray.evaluation.batching import batch_by_length
from cpo_ray.inference.embedding import embed_texts, load_embedder

BATCH_TOKENS = 8192  # of a forward pass, padding included

Featurize = Callable[[list[str]], npt.NDArray[np.float32]]


def load_featurizer(config: MauveConfig) -> Featurize:
    """What maps n texts, empty ones included, to (n, D) float32, as `config.features` says; on a GPU where there is one.

    Raises ConfigError where there is no such model.
    """
    if config.features == "sentence":
        embedder = load_embedder(config.embedder)
        return lambda texts: embed_texts(embedder, texts)
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.embedder, trust_remote_code=False)
        model = AutoModel.from_pretrained(config.embedder, dtype="auto", use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"mauve.embedder {config.embedder}: neither a model directory nor a model that the hub gives ({error}); "
            "`features: last_token` takes a language model"
        ) from None
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return lambda texts: last_token_states(model, tokenizer, texts)


@torch.no_grad()
def last_token_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> npt.NDArray[np.float32]:
    """(n, D): a causal model's last hidden state at each text's last token, as MAUVE's authors take GPT-2's (Pillutla et al.
    2021). A text longer than the model's window counts by its beginning; an empty one is the end-of-text token alone.

    Raises ConfigError for an empty text where the tokenizer has no such token.
    """
    window = getattr(model.config, "max_position_embeddings", None)
    token_ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:window] for text in texts]
    if tokenizer.eos_token_id is None and not all(token_ids):
        raise ConfigError("mauve.embedder: the tokenizer has no end-of-text token to stand for an empty text")
    token_ids = [ids or [tokenizer.eos_token_id] for ids in token_ids]
    states = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    for batch in batch_by_length([len(ids) for ids in token_ids], BATCH_TOKENS):
        longest = len(token_ids[batch[0]])
        # Padding stands on the right, where a causal model does not see it: any token will do.
        padded = torch.tensor([token_ids[index] + [0] * (longest - len(token_ids[index])) for index in batch])
        last = torch.tensor([len(token_ids[index]) - 1 for index in batch])
        hidden = model(padded.to(model.device)).last_hidden_state.cpu()
        states[batch] = hidden[torch.arange(len(batch)), last].float().numpy()
    return states
