"""Text features for MAUVE and the text metrics: sentence embeddings, or a language model's hidden state at the last token."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cpo_ray.artifacts import content_key
from cpo_ray.config import MauveConfig
from cpo_ray.errors import ConfigError
from cpo_ray.evaluation.batching import batch_by_length
from cpo_ray.inference.embedding import embed_texts, load_embedder

BATCH_TOKENS = 8192  # per forward pass, padding included

Featurize = Callable[[list[str]], npt.NDArray[np.float32]]


def load_featurizer(config: MauveConfig) -> Featurize:
    """Return a function that maps n texts, which may be empty, to features (n, D) float32, of the kind `config.features`.

    It uses a GPU if there is one. Raises ConfigError if the model cannot be loaded.
    """
    if config.features == "sentence":
        return sentence_features(config.embedder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.embedder, trust_remote_code=False)
        model = AutoModel.from_pretrained(config.embedder, dtype="auto", use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"mauve.embedder {config.embedder}: neither a model directory nor a model on the Hugging Face hub ({error}); "
            "`features: last_token` needs a language model"
        ) from None
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return lambda texts: last_token_states(model, tokenizer, texts)


@cache
def sentence_features(embedder: str) -> Featurize:
    """Sentence embeddings, kept in memory: the stages `mauve` and `text_metrics` of a run embed the same lists of texts.

    Kept by list, not by text: in another batch an embedding may differ in its last bits.
    """
    model, known = load_embedder(embedder), dict[str, npt.NDArray[np.float32]]()

    def featurize(texts: list[str]) -> npt.NDArray[np.float32]:
        key = content_key(texts)
        if key not in known:
            known[key] = embed_texts(model, texts)
        return known[key]

    return featurize


@torch.no_grad()
def last_token_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Return (n, D): a causal model's last hidden state at the last token of each text, as MAUVE's authors use GPT-2
    (Pillutla et al. 2021). A text longer than the model's window is truncated at its end; an empty text becomes the
    end-of-text token.

    Raises ConfigError for an empty text if the tokenizer has no end-of-text token.
    """
    window = getattr(model.config, "max_position_embeddings", None)
    token_ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:window] for text in texts]
    if tokenizer.eos_token_id is None and not all(token_ids):
        raise ConfigError("mauve.embedder: the tokenizer has no end-of-text token, which an empty text needs")
    token_ids = [ids or [tokenizer.eos_token_id] for ids in token_ids]
    states = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    for batch in batch_by_length([len(ids) for ids in token_ids], BATCH_TOKENS):
        longest = len(token_ids[batch[0]])
        # A causal model does not attend to padding on the right, so any token id will do.
        padded = torch.tensor([token_ids[index] + [0] * (longest - len(token_ids[index])) for index in batch])
        last = torch.tensor([len(token_ids[index]) - 1 for index in batch])
        hidden = model(padded.to(model.device)).last_hidden_state.cpu()
        states[batch] = hidden[torch.arange(len(batch)), last].float().numpy()
    return states
