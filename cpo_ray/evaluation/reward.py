"""The reward model's preference: a Hugging Face sequence classifier with one output scores each prompt and response.

Pure functions of a loaded model; `reward_pool.py` runs them in Ray actors.
"""

import bisect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cpo_ray.artifacts import Summary
from cpo_ray.config import RewardConfig
from cpo_ray.errors import ConfigError, ServiceError
from cpo_ray.evaluation.batching import batch_by_length
from cpo_ray.evaluation.pairs import Pair
from cpo_ray.evaluation.statistics import length_controlled_win_rate, win_rate_interval

UNBOUNDED = 10**6  # a tokenizer without a limit reports a far larger length
EncodedText = dict[str, list[int]]  # input_ids and, for some, token_type_ids: (T,) each


class PromptResponse(NamedTuple):
    """The text that a reward model scores."""

    prompt: str
    response: str


class RewardScore(NamedTuple):
    """A reward, on the model's own scale, and whether the text was truncated."""

    reward: float
    cut: bool


class RewardRow(TypedDict):
    """The scores of one pair: a line of reward/<model>/<decoding>.jsonl."""

    id: str
    outcome: Literal["win", "loss", "tie"]  # of the candidate
    candidate: float
    reference: float
    cut: bool  # whether either text was truncated


@dataclass(frozen=True)
class RewardModel:
    """A classifier with one output, its tokenizer, the input format `style`, and at most `limit` tokens (None: no limit)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    style: Literal["chat", "pair"]
    limit: int | None


def check_reward_model(config: RewardConfig) -> None:
    """Raise ConfigError if `config.model` cannot be found or does not have exactly one output. Loads no weights."""
    name = str(config.model)
    try:
        labels = AutoConfig.from_pretrained(name, trust_remote_code=False).num_labels
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"reward.model {name}: neither a model directory nor a model on the Hugging Face hub ({error})"
        ) from None
    if labels != 1:
        raise ConfigError(f"reward.model {name} has {labels} outputs; a reward model has one (num_labels: 1)")


def load_reward_model(config: RewardConfig, device: str) -> RewardModel:
    """Load safetensors in the stored precision. Raises ConfigError like `check_reward_model`, for a checkpoint that lacks
    weights (for example a language model without a trained head), and for `style: chat` without a chat template.
    """
    check_reward_model(config)
    name = str(config.model)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        name, dtype="auto", use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ConfigError(
            f"reward.model {name} lacks {', '.join(sorted(info['missing_keys'])[:5])}: it would score with random weights"
        )
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if config.style == "chat" and not tokenizer.chat_template:
        raise ConfigError(f"reward.style chat: the tokenizer of {name} has no chat template; use pair")
    style = config.style or ("chat" if tokenizer.chat_template else "pair")
    limits = (config.max_tokens, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
    limit = min((length for length in limits if length is not None and length < UNBOUNDED), default=None)
    return RewardModel(model.to(device).eval(), tokenizer, style, limit)


@torch.no_grad()
def score_responses(reward: RewardModel, items: Sequence[PromptResponse], batch_tokens: int) -> list[RewardScore]:
    """Return one score per item, in order. Apart from rounding, a score does not depend on the rest of its batch.

    Raises ServiceError for a score that is not finite, ConfigError if not even an empty text fits the limit.
    """
    encoded = [_encode_within_limit(reward, item) for item in items]
    scores: list[RewardScore | None] = [None] * len(items)
    for batch in batch_by_length([len(tokens["input_ids"]) for tokens, _ in encoded], batch_tokens):
        rewards = _forward(reward.model, [encoded[index][0] for index in batch])
        for index, value in zip(batch, rewards, strict=True):
            if not torch.isfinite(value):
                raise ServiceError(
                    f"the reward model scores {float(value)} for the prompt {items[index].prompt[:80]!r}"
                )
            scores[index] = RewardScore(float(value), encoded[index][1])
    return [score for score in scores if score is not None]


def compare_scores(
    pairs: Sequence[Pair], candidates: Sequence[RewardScore], references: Sequence[RewardScore]
) -> list[RewardRow]:
    """Compare the rewards of each pair: the higher one wins; equal rewards are a tie."""
    rows = []
    for pair, ours, theirs in zip(pairs, candidates, references, strict=True):
        outcome: Literal["win", "loss", "tie"] = "tie"
        if ours.reward != theirs.reward:
            outcome = "win" if ours.reward > theirs.reward else "loss"
        cut = ours.cut or theirs.cut
        rows.append(RewardRow(id=pair["id"], outcome=outcome, candidate=ours.reward, reference=theirs.reward, cut=cut))
    return rows


def summarise_rewards(pairs: Sequence[Pair], rows: Sequence[RewardRow]) -> Summary:
    """{"n", "wins", "losses", "ties", "win_rate", "ci95", "length_controlled", "mean_reward_candidate",
    "mean_reward_reference", "cut"}, as defined in `judge.judge_answers`; rewards are on the model's own scale.
    """
    outcomes = [row["outcome"] for row in rows]
    rate, low, high = win_rate_interval(outcomes)
    lengths = [[len(text.split()) for text in (pair["response"], pair["reference"])] for pair in pairs]
    controlled = length_controlled_win_rate(outcomes, [ours for ours, _ in lengths], [theirs for _, theirs in lengths])
    return {
        "n": len(rows),
        "wins": outcomes.count("win"),
        "losses": outcomes.count("loss"),
        "ties": outcomes.count("tie"),
        "win_rate": rate,
        "ci95": [low, high],
        "length_controlled": None if controlled is None else asdict(controlled),
        "mean_reward_candidate": sum(row["candidate"] for row in rows) / len(rows),
        "mean_reward_reference": sum(row["reference"] for row in rows) / len(rows),
        "cut": sum(row["cut"] for row in rows),
    }


def _encode_within_limit(reward: RewardModel, item: PromptResponse) -> tuple[EncodedText, bool]:
    """Tokenize an item within the limit, and return whether it was truncated.

    A long prompt loses its beginning. If the response alone is too long, the prompt is dropped and the response loses its end.
    """
    prompt, response = item
    tokens = _encode(reward, prompt, response)
    limit = reward.limit
    if limit is None or len(tokens["input_ids"]) <= limit:
        return tokens, False

    def too_long(prompt: str, response: str) -> bool:
        return len(_encode(reward, prompt, response)["input_ids"]) > limit

    if too_long("", ""):
        raise ConfigError(f"reward.max_tokens: not even an empty text fits into {limit} tokens")
    if too_long("", response):
        kept = bisect.bisect_left(range(1, len(response) + 1), x=True, key=lambda n: too_long("", response[:n]))
        return _encode(reward, "", response[:kept]), True
    kept = bisect.bisect_left(range(1, len(prompt) + 1), x=True, key=lambda n: too_long(prompt[-n:], response))
    return _encode(reward, prompt[len(prompt) - kept :], response), True


def _encode(reward: RewardModel, prompt: str, response: str) -> EncodedText:
    if reward.style == "pair":
        encoded = reward.tokenizer(prompt, response, truncation=False, verbose=False)
    else:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        encoded = reward.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
    return {key: list(encoded[key]) for key in ("input_ids", "token_type_ids") if key in encoded}


def _forward(model: PreTrainedModel, batch: Sequence[EncodedText]) -> torch.Tensor:
    """Return the rewards (B,) of texts padded on the right."""
    longest = max(len(tokens["input_ids"]) for tokens in batch)
    config = model.config.get_text_config()
    configured_pad = config.pad_token_id
    if configured_pad is None or configured_pad < 0:
        # Decoders take the reward at the last token that is not the padding token. A model without a padding token gets,
        # for this batch, a token that does not occur in it.
        present = {token for tokens in batch for token in tokens["input_ids"]}
        config.pad_token_id = next(token for token in range(config.vocab_size) if token not in present)
    pad_values = {"input_ids": config.pad_token_id, "token_type_ids": 0}
    inputs: dict[str, Any] = {
        key: torch.tensor([tokens[key] + [pad_values[key]] * (longest - len(tokens[key])) for tokens in batch])
        for key in batch[0]
    }
    mask = [[1] * len(tokens["input_ids"]) + [0] * (longest - len(tokens["input_ids"])) for tokens in batch]
    inputs["attention_mask"] = torch.tensor(mask)
    try:
        logits = model(**{key: value.to(model.device) for key, value in inputs.items()}).logits
    finally:
        config.pad_token_id = configured_pad
    return logits.squeeze(-1).float().cpu()
