"""The pairwise LLM judge: which response is more helpful, the model's or the ground truth's?

Any OpenAI-compatible model can be the judge. By default each pair is judged in both orders, because judges have a position
bias: if the answer changes with the order (a flip), the pair is a tie, and flips are counted. If both responses are the same
text, the pair is a tie and no request is sent. An answer that is neither A nor B is an invalid verdict.
"""

import asyncio
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from cpo_ray.artifacts import Journal, Summary, content_key, write_rows
from cpo_ray.config import JudgeConfig
from cpo_ray.errors import ArtifactError, ServiceError
from cpo_ray.evaluation.pairs import Pair
from cpo_ray.evaluation.statistics import INVALID, length_controlled_win_rate, position_bias, win_rate_interval
from cpo_ray.evaluation.templates import fill_template, read_template
from cpo_ray.inference.client import Client, EmptyAnswerError, RefusedError, require_choice, run_bounded
from cpo_ray.records import Verdict

LONGEST_ANSWER = 16  # tokens; the expected answer is one letter
BYTES_PER_TOKEN = 4  # English text in current tokenizers; other languages need more tokens
EXAMPLE = 500  # characters of an invalid answer in an error message: its end, because thoughts come first
ROW_REFUSED = {400, 413, 422}  # the judge refuses this one request: too long for it, or filtered

RequestBody = dict[str, Any]
Answer = Literal["A", "B"]
VerdictOutcome = Literal["win", "loss", "tie", "invalid"]
THOUGHT_END = "</think>"  # some judges show what they think before they answer
# quoted, emphasised or in brackets, and perhaps with a full stop: "A". **A** (A) [[A]] `A`
ANSWER = re.compile(r"""\s*["'“‘*_(\[`]{0,4}([AB])[."'”’*_)\]`]{0,6}\s*""")  # noqa: RUF001 - quotation marks
MORE_TOKENS = "A judge that thinks needs more tokens: --thinking-tokens (judge.thinking_tokens)."


def parse_answer(text: str) -> Answer | None:
    """Return A or B, which may be quoted, emphasised, in brackets, and end with a full stop.

    What precedes the last `</think>` does not count. None for any other text, such as lower case or a sentence.
    """
    match = ANSWER.fullmatch(text.rpartition(THOUGHT_END)[2])
    return cast("Answer", match[1]) if match else None


def decide(answers: Sequence[Answer | None], candidate_first: Sequence[bool]) -> tuple[VerdictOutcome, bool]:
    """Return the outcome for the candidate, and whether the two orders disagreed (a flip).

    `answers[i]` is the judge's answer with the candidate first (as A) or, if `candidate_first[i]` is false, second. No
    answers means that both responses were the same text.
    """
    if not answers:
        return "tie", False
    if None in answers:
        return "invalid", False
    preferred = {(answer == "A") == first for answer, first in zip(answers, candidate_first, strict=True)}
    if len(preferred) > 1:
        return "tie", True
    return ("win" if preferred.pop() else "loss"), False


@dataclass(frozen=True)
class CostEstimate:
    """Requests and tokens that a judging needs. Tokens are estimated from the length of the text; the bill counts those of
    the judge's own tokenizer.
    """

    pairs: int
    requests: int
    known: int  # answers kept from an earlier run
    prompt_tokens: int
    answer_tokens: int  # at most

    def price(self, per_million: float, per_million_answers: float) -> float:
        """Return the cost in the currency of the prices, which are per million tokens."""
        return (self.prompt_tokens * per_million + self.answer_tokens * per_million_answers) / 1e6

    def __str__(self) -> str:
        return (
            f"{self.pairs:,} pairs: {self.requests:,} requests ({self.known:,} answers are known), about "
            f"{self.prompt_tokens:,} tokens, and at most {self.answer_tokens:,} in answers"
        )


def estimate_cost(pairs: Sequence[Pair], config: JudgeConfig, seed: int, out: Path) -> CostEstimate:
    """Estimate what `judge_answers` with the same arguments would request, without retries. Sends no request."""
    bodies = {_answer_key(body, config): body for bodies in _build_requests(pairs, config, seed)[0] for body in bodies}
    with Journal(journal_path(out)) as journal:
        missing = [body for key, body in bodies.items() if key not in journal]
    return CostEstimate(
        pairs=len(pairs),
        requests=len(missing),
        known=len(bodies) - len(missing),
        prompt_tokens=sum(math.ceil(len(_prompt_of(body).encode()) / BYTES_PER_TOKEN) for body in missing),
        answer_tokens=(config.thinking_tokens + LONGEST_ANSWER) * len(missing),
    )


def judge_answers(
    generations: Sequence[Pair],
    url: str,
    key: str,
    config: JudgeConfig,
    seed: int,
    out: Path,
    on_row: Callable[[], None],
) -> Summary:
    """Judge every response against its `reference` and write records.Verdict rows to `out`, in the given order.

    `url` ends in /v1; the caller resolves `config.url` and the key's environment variable. Temperature is 0, except for
    reasoning judges (`thinking_tokens`). Answers are kept in `<stem>.answers` beside `out`, keyed by `config.url` and the
    request: a rerun repeats no request, and another judge gets new ones. A row that the judge refuses (too long for it, or
    filtered) or never answers with text is invalid, and a rerun requests it again. `on_row()` is called once per row.

    Returns {"judge", "order", "n", "wins", "losses", "ties", "invalid", "flip_rate", "mean_length_candidate",
    "mean_length_reference", "win_rate", "ci95", "length_controlled", "position_bias"}: lengths in words, win_rate =
    (wins + ties / 2) / valid with its 95% interval [low, high], flip_rate = flips / valid; the last two have the fields of
    statistics.LengthControlled and PositionBias, the latter over the pairs that the judge was asked about. A value is None
    if no verdict is valid or it cannot be computed; flip_rate is None if only one order was asked.

    Raises ConfigError for a template that cannot be used; ServiceError if the judge refuses all requests or keeps failing,
    or more than `config.max_invalid_fraction` of the rows are invalid; ArtifactError if there is nothing to judge.
    """
    if not generations:
        raise ArtifactError("there are no generations to judge")
    requests, orders = _build_requests(generations, config, seed)
    client = Client(url, key, config.retries, requests_per_minute=config.requests_per_minute)
    with Journal(journal_path(out)) as journal:
        refused = asyncio.run(_send_requests(client, requests, journal, config, on_row))
        journal.sort()
        answers = journal.entries | refused
    verdicts = [
        _to_verdict(row, [answers[_answer_key(body, config)] for body in bodies], order)
        for row, bodies, order in zip(generations, requests, orders, strict=True)
    ]
    summary = _summarise(verdicts, config)
    if summary["invalid"] > config.max_invalid_fraction * len(verdicts):
        invalid = {answer for row in verdicts for answer in row["answers"] if parse_answer(answer) is None}
        examples = sorted(answer[-EXAMPLE:] for answer in invalid)
        raise ServiceError(
            f"{summary['invalid']} of {len(verdicts)} rows have an answer that is neither A nor B, more than "
            f"judge.max_invalid_fraction {config.max_invalid_fraction} allows; for instance {examples[:3]}"
        )
    write_rows(out, verdicts)
    return summary


def journal_path(out: Path) -> Path:
    """Return the file that keeps the judge's answers for the verdicts `out`."""
    return out.with_name(f"{out.stem}.answers")


def candidate_orders(order: str, seed: int, row_id: str) -> tuple[bool, ...]:
    """For each request about a row, whether the candidate comes first: both orders, or one drawn from (seed, id)."""
    if order == "both":
        return (True, False)
    return (hashlib.sha256(f"{seed}:judge:{row_id}".encode()).digest()[0] % 2 == 0,)


def _build_requests(
    pairs: Sequence[Pair], config: JudgeConfig, seed: int
) -> tuple[list[list[RequestBody]], list[tuple[bool, ...]]]:
    """Build the requests about each pair and, for each request, whether the candidate comes first.

    A pair has no requests if both orders give the same one, because its single answer would count as a flip.
    """
    template = read_template(config.template)
    requests: list[list[RequestBody]] = []
    orders: list[tuple[bool, ...]] = []
    for pair in pairs:
        order = candidate_orders(config.order, seed, pair["id"])
        bodies = [_build_request(pair, first, template, config) for first in order]
        same = len(bodies) > 1 and bodies[0] == bodies[1]
        requests.append([] if same else bodies)
        orders.append(() if same else order)
    return requests, orders


def _build_request(pair: Pair, candidate_first: bool, template: str, config: JudgeConfig) -> RequestBody:
    first, second = pair["response"], pair["reference"]
    if not candidate_first:
        first, second = second, first
    question = fill_template(template, pair["prompt"], first, second)
    if config.api == "completions":
        content: RequestBody = {"prompt": question, "stop": ["\n"]}
    else:
        content = {"messages": [{"role": "user", "content": question}]}
    if config.thinking_tokens:
        limits: RequestBody = {"max_completion_tokens": config.thinking_tokens + LONGEST_ANSWER}
    else:
        limits = {"temperature": 0, "max_tokens": LONGEST_ANSWER}
    return {"model": config.model} | content | limits


def _answer_key(body: RequestBody, config: JudgeConfig) -> str:
    """Return the journal's key of an answer: URL and request. Two APIs may serve different models under one name."""
    return content_key([config.url.rstrip("/"), body])


def _prompt_of(body: RequestBody) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][0]["content"])


async def _send_requests(
    client: Client,
    requests: list[list[RequestBody]],
    journal: Journal,
    config: JudgeConfig,
    on_row: Callable[[], None],
) -> dict[str, str]:
    """Fill the journal; return the error message of each refused request by key. It never parses as an answer."""
    path = "/completions" if config.api == "completions" else "/chat/completions"
    locks: dict[str, asyncio.Lock] = {}
    refused: dict[str, str] = {}

    async def send(bodies: list[RequestBody]) -> None:
        for body in bodies:
            key = _answer_key(body, config)
            async with locks.setdefault(key, asyncio.Lock()):  # equal pairs share one request
                if key not in journal and key not in refused:
                    try:
                        journal.add(key, _read_answer(await client.post(path, body, require_choice)))
                    except RefusedError as refusal:
                        if refusal.status not in ROW_REFUSED:
                            raise
                        refused[key] = str(refusal)
                    except EmptyAnswerError as error:
                        refused[key] = f"{error}. {MORE_TOKENS}"
        on_row()

    async with client:
        await run_bounded(requests, config.concurrency, send)
    return refused


def _read_answer(answer: dict[str, Any]) -> str:
    """Return the text of the judge's answer. An empty message (for example a refusal) is an invalid answer."""
    choice = answer["choices"][0]
    content = (choice.get("message") or {}).get("content") or choice.get("text") or ""
    if isinstance(content, list):  # parts; thoughts are parts of another type
        content = "".join(
            str(part.get("text", "")) for part in content if isinstance(part, dict) and part.get("type") == "text"
        )
    return str(content)


def _to_verdict(row: Pair, answers: list[str], candidate_first: Sequence[bool]) -> Verdict:
    outcome, flipped = decide([parse_answer(answer) for answer in answers], candidate_first)
    return Verdict(
        id=row["id"],
        outcome=outcome,
        answers=answers,
        flipped=flipped,
        candidate_words=len(row["response"].split()),
        reference_words=len(row["reference"].split()),
    )


def _summarise(verdicts: list[Verdict], config: JudgeConfig) -> Summary:
    counts = {what: sum(row["outcome"] == what for row in verdicts) for what in ("win", "loss", "tie", INVALID)}
    valid = [row for row in verdicts if row["outcome"] != INVALID]
    flips = sum(row["flipped"] for row in verdicts)
    rate, low, high = win_rate_interval([row["outcome"] for row in valid]) if valid else (None, None, None)
    letters = [_parsed_answers(row) for row in valid if row["answers"]]
    return {
        "judge": config.model,
        "order": config.order,
        "n": len(verdicts),
        "wins": counts["win"],
        "losses": counts["loss"],
        "ties": counts["tie"],
        "invalid": counts[INVALID],
        "flip_rate": flips / len(valid) if valid and config.order == "both" else None,
        "mean_length_candidate": sum(row["candidate_words"] for row in verdicts) / len(verdicts),
        "mean_length_reference": sum(row["reference_words"] for row in verdicts) / len(verdicts),
        "win_rate": rate,
        "ci95": [low, high] if valid else None,
        "length_controlled": _length_controlled(valid),
        "position_bias": asdict(position_bias(letters)) if letters else None,
    }


def _length_controlled(valid: list[Verdict]) -> dict[str, float] | None:
    if not valid:
        return None
    controlled = length_controlled_win_rate(
        [row["outcome"] for row in valid],
        [row["candidate_words"] for row in valid],
        [row["reference_words"] for row in valid],
    )
    return None if controlled is None else asdict(controlled)


def _parsed_answers(row: Verdict) -> list[str]:
    return [letter for answer in row["answers"] if (letter := parse_answer(answer))]
