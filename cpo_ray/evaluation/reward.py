"""The reward model's preference: any Hugging Face sequence classifier with one output scores prompt and response.

Pure functions of a loaded model; `reward_pool.py` puts them into Ray actors.
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

UNBOUNDED = 10**6  # tokenizers that know no limit name a far larger one
Tokens = dict[str, list[int]]  # input_ids and, for some, token_type_ids: (T,) each


class Question(NamedTuple):
    """What is scored."""

    prompt: str
    response: str


class Score(NamedTuple):
    """A reward, on the model's own scale, and whether the text had to be cut for it."""

    reward: float
    cut: bool


class RewardRow(TypedDict):
    """One pair, scored: a line of reward/<model>/<decoding>.jsonl."""

    id: str
    outcome: Literal["win", "loss", "tie"]  # of the candidate
    candidate: float
    reference: float
    cut: bool  # either text


@dataclass(frozen=True)
class RewardModel:
    """A classifier with one output, its tokenizer, and how it reads: `style` and at most `limit` tokens (None: any)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    style: Literal["chat", "pair"]
    limit: int | None


def check_reward_model(config: RewardConfig) -> None:
    """Raise ConfigError where `config.model` cannot be found or has not one output. Loads no weights."""
    name = str(config.model)
    try:
        labels = AutoConfig.from_pretrained(name, trust_remote_code=False).num_labels
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"reward.model {name}: neither a model directory nor a model that the hub gives ({error})"
        ) from None
    if labels != 1:
        raise ConfigError(f"reward.model {name} has {labels} outputs; a reward model has one (num_labels: 1)")


def load_reward_model(config: RewardConfig, device: str) -> RewardModel:
    """Load safetensors in the stored precision. Raises ConfigError as `check_reward_model` does, for a checkpoint that
    lacks weights (a language model without a trained head, say), and for `style: chat` without a chat template.
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
    known = (config.max_tokens, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
    limit = min((length for length in known if length is not None and length < UNBOUNDED), default=None)
    return RewardModel(model.to(device).eval(), tokenizer, style, limit)


@torch.no_grad()
def score_questions(reward: RewardModel, questions: Sequence[Question], batch_tokens: int) -> list[Score]:
    """One score per question, in order. A score does not depend on what else is in its batch, rounding aside.

    Raises ServiceError for a score that is not finite, ConfigError where not even an empty text fits the limit.
    """
    fitted = [_fit(reward, question) for question in questions]
    scores: list[Score | None] = [None] * len(questions)
    for batch in batch_by_length([len(tokens["input_ids"]) for tokens, _ in fitted], batch_tokens):
        rewards = _forward(reward.model, [fitted[index][0] for index in batch])
        for index, value in zip(batch, rewards, strict=True):
            if not torch.isfinite(value):
                raise ServiceError(
                    f"the reward model scores {float(value)} for the prompt {questions[index].prompt[:80]!r}"
                )
            scores[index] = Score(float(value), fitted[index][1])
    return [score for score in scores if score is not None]


def compare_scores(pairs: Sequence[Pair], candidates: Sequence[Score], references: Sequence[Score]) -> list[RewardRow]:
    """The preferred response is the one with the higher reward; equal rewards are a tie."""
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
    "mean_reward_reference", "cut"}, with the meanings of `judge.judge_answers`; rewards on the model's own scale.
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


def _fit(reward: RewardModel, question: Question) -> tuple[Tokens, bool]:
    """The question's tokens, and whether it was cut: as much of the prompt's end as fits, else of the response's beginning."""
    prompt, response = question
    tokens = _frame(reward, prompt, response)
    limit = reward.limit
    if limit is None or len(tokens["input_ids"]) <= limit:
        return tokens, False

    def too_long(prompt: str, response: str) -> bool:
        return len(_frame(reward, prompt, response)["input_ids"]) > limit

    if too_long("", ""):
        raise ConfigError(f"reward.max_tokens: not even an empty text fits into {limit} tokens")
    if too_long("", response):
        kept = bisect.bisect_left(range(1, len(response) + 1), x=True, key=lambda n: too_long("", response[:n]))
        return _frame(reward, "", response[:kept]), True
    kept = bisect.bisect_left(range(1, len(prompt) + 1), x=True, key=lambda n: too_long(prompt[-n:], response))
    return _frame(reward, prompt[len(prompt) - kept :], response), True


def _frame(reward: RewardModel, prompt: str, response: str) -> Tokens:
    if reward.style == "pair":
        encoded = reward.tokenizer(prompt, response, truncation=False, verbose=False)
    else:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        encoded = reward.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)
    return {key: list(encoded[key]) for key in ("input_ids", "token_type_ids") if key in encoded}


def _forward(model: PreTrainedModel, batch: Sequence[Tokens]) -> torch.Tensor:
    """(B,) rewards of texts padded on the right."""
    longest = max(len(tokens["input_ids"]) for tokens in batch)
    padding = model.config.get_text_config()
    pad = padding.pad_token_id
    if pad is None or pad < 0:
        # Decoders read the reward at the last token that is not the padding token. One that has none gets a token that
        # does not occur here.
        present = {token for tokens in batch for token in tokens["input_ids"]}
        padding.pad_token_id = next(token for token in range(padding.vocab_size) if token not in present)
    filler = {"input_ids": padding.pad_token_id, "token_type_ids": 0}
    inputs: dict[str, Any] = {
        key: torch.tensor([tokens[key] + [filler[key]] * (longest - len(tokens[key])) for tokens in batch])
        for key in batch[0]
    }
    real = [[1] * len(tokens["input_ids"]) + [0] * (longest - len(tokens["input_ids"])) for tokens in batch]
    inputs["attention_mask"] = torch.tensor(real)
    try:
        logits = model(**{key: value.to(model.device) for key, value in inputs.items()}).logits
    finally:
        padding.pad_token_id = pad
    return logits.squeeze(-1).float().cpu()
