"""Types and Arrow schemas of the rows that pass between the stages, which responses end with EOS, and an adapter's files.

Shape legend, used as suffixes throughout:
    B prompts of a batch    K candidates of a group    T tokens    V vocabulary    D hidden size
    R packed rows           N nodes of a token tree    S sources (positions whose hidden states go through the LM head)
    E edges (source, target token)
"""

import itertools
from collections.abc import Collection, Sequence
from typing import Literal, TypedDict, get_args

import pyarrow as pa

Tokens = list[int]  # token ids, in order

CandidateKind = Literal["gold", "autoregressive", "greedy", "batch", "meanfield", "truncation", "unhelpful"]
CANDIDATE_KINDS: tuple[str, ...] = get_args(CandidateKind)
NEGATIVE_KINDS = CANDIDATE_KINDS[1:]
ANSWER = "answer"  # the kind of a candidate that is no negative of ours: another answer that the data ranks

ADAPTER = "adapter"  # folder of a model directory: its adapter in peft's format, beside merged weights or without them
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # peft's names of the files in it


class Example(TypedDict):
    """One prompt with its ground-truth response, as text and as tokens."""

    id: str  # sha256 of the content, 16 hex digits, stable across runs
    source: str
    category: str
    prompt: str  # with the template applied
    response: str
    prompt_ids: Tokens
    response_ids: Tokens  # ends with EOS, unless the response was cut (`end_response`)


def end_response(ids: Sequence[int], eos: int, max_tokens: int, *, ends: bool = True) -> Tokens:
    """The tokens of a response: all `ids` and EOS if these are at most `max_tokens`, else the first `max_tokens` without EOS.

    A response that is cut does not end there, so it has no EOS. ids: the whole text's tokens. ends: False if the text is
    itself a part of a longer one, which goes on.
    """
    if ends and len(ids) + 1 <= max_tokens:
        return [*ids, eos]
    return list(ids[:max_tokens])


def without_eos(tokens: Tokens, eos: int) -> Tokens:
    """The tokens before the final EOS: all of them if the response was cut."""
    return tokens[:-1] if tokens[-1:] == [eos] else tokens


def cut_prompt(ids: Sequence[int], max_tokens: int, special: Collection[int]) -> Tokens:
    """A prompt of at most `max_tokens` tokens: the special tokens that it begins with (BOS), and the end of its text.

    special: ids of the tokenizer's special tokens, which no text has (`tokenizer.all_special_ids` without UNK).
    """
    if len(ids) <= max_tokens:
        return list(ids)
    leading = list(itertools.takewhile(special.__contains__, ids))[: max_tokens - 1]
    return [*leading, *ids[len(ids) - max_tokens + len(leading) :]]


class RankedExample(Example):
    """An example whose data has other answers, with their ranks: the response is the best of them."""

    answer_text: list[str]  # (K - 1,) the other answers, best first
    answer_ids: list[Tokens]  # (K - 1,) as `response_ids`
    answer_rank: list[int]  # (K - 1,) how many answers are better, the response included; equal for ties
    answer_score: list[float] | None  # (K,) the response's first; higher is better; None if the data has only ranks


class Group(TypedDict):
    """One prompt with its K candidates: the unit of data from sampling to the optimizer. Candidate 0 is the gold."""

    id: str
    prompt: str
    prompt_ids: Tokens
    candidate_kind: list[str]  # (K,)
    candidate_ids: list[Tokens]  # (K, T_k)
    candidate_text: list[str]  # (K,)
    similarity: list[float]  # (K,) cosine to the gold's embedding
    rank: list[int]  # (K,) how many candidates are better; rank[0] = 0; a permutation unless answers of the data tie
    ref_logps: list[float]  # (K,) nats, summed over the continuation's tokens
    ref_spread: list[float] | None  # (K,) nats by which another packing's ref_logps differ; None if not measured
    score: list[float | None] | None  # (K,) of answers of the data, None for negatives; higher is better


SCORE = pa.field("score", pa.list_(pa.float64()))
"""A further column of groups whose answers the data has scores for: (K,), higher is better. Only groups with scores have it."""

EXAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("category", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
    ]
)

RANKED_EXAMPLE_SCHEMA = pa.schema(
    [
        *EXAMPLE_SCHEMA,
        ("answer_text", pa.list_(pa.string())),
        ("answer_ids", pa.list_(pa.list_(pa.int32()))),
        ("answer_rank", pa.list_(pa.int32())),
        ("answer_score", pa.list_(pa.float64())),
    ]
)

GROUP_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("candidate_kind", pa.list_(pa.string())),
        ("candidate_ids", pa.list_(pa.list_(pa.int32()))),
        ("candidate_text", pa.list_(pa.string())),
        ("similarity", pa.list_(pa.float32())),
        ("rank", pa.list_(pa.int32())),
        ("ref_logps", pa.list_(pa.float64())),
        ("ref_spread", pa.list_(pa.float64())),
    ]
)


SCORED_GROUP_SCHEMA = GROUP_SCHEMA.append(SCORE)
"""Of groups that are made from answers with scores (`data.source: preferences`)."""


class Generation(TypedDict):
    """One model's response to one test prompt: a line of generations/<model>/<decoding>.jsonl."""

    id: str
    prompt: str
    reference: str  # the ground-truth response
    response: str
    tokens: int  # generated tokens, EOS not counted
    finish_reason: str  # "stop" or "length"


class Verdict(TypedDict):
    """The judge's verdict on one pair: a line of verdicts/<model>/<decoding>.jsonl."""

    id: str
    outcome: Literal["win", "loss", "tie", "invalid"]  # of the candidate
    answers: list[str]  # the judge's replies, one per order; empty if both responses are equal
    flipped: bool  # the two orders disagreed
    candidate_words: int  # whitespace-separated
    reference_words: int
