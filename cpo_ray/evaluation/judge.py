"""The pairwise judge: which response is more helpful, the model's or the ground truth's?

Any OpenAI-compatible model judges. By default each pair is asked in both orders, because judges prefer a position: a judge
that changes its mind with the order has no opinion, so a flip is a tie, and is counted. Where both responses are the same
text there is one order and nothing to ask: a tie. An answer that is neither A nor B is never a verdict.
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
from cpo_ray.inference.client import Client, RefusedError, run_bounded
from cpo_ray.records import Verdict

LONGEST_ANSWER = 16  # tokens; one letter is asked for
BYTES_PER_TOKEN = 4  # of English, in the tokenizers of today; other languages take more tokens
ROW_REFUSED = {400, 413, 422}  # the judge will not have this one question: too long for it, or filtered

Body = dict[str, Any]
Answer = Literal["A", "B"]
Outcome = Literal["win", "loss", "tie", "invalid"]
ANSWER = re.compile(r"""\s*["'“]?([AB])[."'”]{0,2}\s*""")


def parse_answer(text: str) -> Answer | None:
    """A or B, quoted or with a full stop if the judge likes; None for anything else, lower case and sentences included."""
    match = ANSWER.fullmatch(text)
    return cast("Answer", match[1]) if match else None


def decide(answers: Sequence[Answer | None], candidate_first: Sequence[bool]) -> tuple[Outcome, bool]:
    """The outcome for the candidate, and whether the orders disagreed.

    `answers[i]` is the judge's word where the candidate stood first (as A) or, with `candidate_first[i]` false, second.
    Without any, the two were the same.
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
class Estimate:
    """What a judging will ask for. Tokens are a guess from the text's length; the judge's own tokenizer counts the bill."""

    pairs: int
    requests: int
    known: int  # answers at hand from before
    prompt_tokens: int
    answer_tokens: int  # at most

    def price(self, per_million: float, per_million_answers: float) -> float:
        """In the currency of the prices, which are per million tokens."""
        return (self.prompt_tokens * per_million + self.answer_tokens * per_million_answers) / 1e6

    def __str__(self) -> str:
        return (
            f"{self.pairs:,} pairs: {self.requests:,} requests ({self.known:,} answers are known), about "
            f"{self.prompt_tokens:,} tokens, and at most {self.answer_tokens:,} in answers"
        )


def estimate_cost(pairs: Sequence[Pair], config: JudgeConfig, seed: int, out: Path) -> Estimate:
    """What `judge_answers` with the same arguments would ask for, failures aside. Asks nothing."""
    bodies = {_key(body, config): body for bodies in _frame(pairs, config, seed)[0] for body in bodies}
    with Journal(journal_path(out)) as journal:
        missing = [body for key, body in bodies.items() if key not in journal]
    return Estimate(
        pairs=len(pairs),
        requests=len(missing),
        known=len(bodies) - len(missing),
        prompt_tokens=sum(math.ceil(len(_text(body).encode()) / BYTES_PER_TOKEN) for body in missing),
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

    `url` ends in /v1; `config.url` and the key's variable are the caller's to resolve. Temperature is 0, but for judges
    that think first. Answers are kept by `config.url` and content in `<stem>.answers` beside `out`: a rerun asks nothing
    twice, and another judge anew. A row that the judge refuses (too long for it, or filtered) is invalid, and is asked
    about again by a rerun. `on_row()` is called once per row.

    Returns {"judge", "order", "n", "wins", "losses", "ties", "invalid", "flip_rate", "mean_length_candidate",
    "mean_length_reference", "win_rate", "ci95", "length_controlled", "position_bias"}: lengths in words, win_rate =
    (wins + ties / 2) / valid with its 95% interval [low, high], flip_rate = flips / valid; the last two are what
    statistics.LengthControlled and PositionBias hold, the latter of the pairs that were asked about. None where nothing is
    valid or can be computed, and flip_rate where one order was asked.

    Raises ConfigError for a template that cannot be used; ServiceError where the judge refuses all or keeps failing, or
    more than `config.max_invalid_fraction` of the rows are invalid; ArtifactError where there is nothing to judge.
    """
    if not generations:
        raise ArtifactError("there are no generations to judge")
    questions, orders = _frame(generations, config, seed)
    client = Client(url, key, config.retries, requests_per_minute=config.requests_per_minute)
    with Journal(journal_path(out)) as journal:
        refused = asyncio.run(_ask_all(client, questions, journal, config, on_row))
        journal.sort()
        said = journal.entries | refused
    verdicts = [
        _to_verdict(row, [said[_key(body, config)] for body in bodies], order)
        for row, bodies, order in zip(generations, questions, orders, strict=True)
    ]
    summary = _summarise(verdicts, config)
    if summary["invalid"] > config.max_invalid_fraction * len(verdicts):
        examples = sorted({answer for row in verdicts for answer in row["answers"] if parse_answer(answer) is None})
        raise ServiceError(
            f"{summary['invalid']} of {len(verdicts)} rows have an answer that is neither A nor B, more than "
            f"judge.max_invalid_fraction {config.max_invalid_fraction} allows; for instance {examples[:3]}"
        )
    write_rows(out, verdicts)
    return summary


def journal_path(out: Path) -> Path:
    """Where the answers behind the verdicts `out` are kept."""
    return out.with_name(f"{out.stem}.answers")


def candidate_orders(order: str, seed: int, row_id: str) -> tuple[bool, ...]:
    """For each question about a row, whether the candidate stands first: both, or one drawn by (seed, id)."""
    if order == "both":
        return (True, False)
    return (hashlib.sha256(f"{seed}:judge:{row_id}".encode()).digest()[0] % 2 == 0,)


def _frame(pairs: Sequence[Pair], config: JudgeConfig, seed: int) -> tuple[list[list[Body]], list[tuple[bool, ...]]]:
    """The questions about each pair, as requests, and for each whether the candidate stands first.

    None where both orders make one request: any judge would seem to change its mind.
    """
    template = read_template(config.template)
    questions: list[list[Body]] = []
    orders: list[tuple[bool, ...]] = []
    for pair in pairs:
        order = candidate_orders(config.order, seed, pair["id"])
        bodies = [_ask_about(pair, first, template, config) for first in order]
        same = len(bodies) > 1 and bodies[0] == bodies[1]
        questions.append([] if same else bodies)
        orders.append(() if same else order)
    return questions, orders


def _ask_about(pair: Pair, candidate_first: bool, template: str, config: JudgeConfig) -> Body:
    first, second = pair["response"], pair["reference"]
    if not candidate_first:
        first, second = second, first
    question = fill_template(template, pair["prompt"], first, second)
    if config.api == "completions":
        asked: Body = {"prompt": question, "stop": ["\n"]}
    else:
        asked = {"messages": [{"role": "user", "content": question}]}
    if config.thinking_tokens:
        limits: Body = {"max_completion_tokens": config.thinking_tokens + LONGEST_ANSWER}
    else:
        limits = {"temperature": 0, "max_tokens": LONGEST_ANSWER}
    return {"model": config.model} | asked | limits


def _key(body: Body, config: JudgeConfig) -> str:
    """By what an answer is found again: who was asked, and what. Two APIs may serve two models under one name."""
    return content_key([config.url.rstrip("/"), body])


def _text(body: Body) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][0]["content"])


async def _ask_all(
    client: Client,
    questions: list[list[Body]],
    journal: Journal,
    config: JudgeConfig,
    on_row: Callable[[], None],
) -> dict[str, str]:
    """Fill the journal; returns what was refused, by key, in words that are no answer."""
    path = "/completions" if config.api == "completions" else "/chat/completions"
    asking: dict[str, asyncio.Lock] = {}
    refused: dict[str, str] = {}

    async def ask(bodies: list[Body]) -> None:
        for body in bodies:
            key = _key(body, config)
            async with asking.setdefault(key, asyncio.Lock()):  # equal pairs are asked about once
                if key not in journal and key not in refused:
                    try:
                        journal.add(key, _read_answer(await client.post(path, body)))
                    except RefusedError as refusal:
                        if refusal.status not in ROW_REFUSED:
                            raise
                        refused[key] = str(refusal)
        on_row()

    async with client:
        await run_bounded(questions, config.concurrency, ask)
    return refused


def _read_answer(answer: dict[str, Any]) -> str:
    """The judge's words; an empty message (a refusal, say) is an answer too, and an invalid one."""
    try:
        choice = answer["choices"][0]
        return str((choice["message"]["content"] if "message" in choice else choice["text"]) or "")
    except (KeyError, IndexError, TypeError) as error:
        raise ServiceError(f"the judge's answer has no {error}: {str(answer)[:300]}") from None


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
    letters = [_letters(row) for row in valid if row["answers"]]
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
        "length_controlled": _control_length(valid),
        "position_bias": asdict(position_bias(letters)) if letters else None,
    }


def _control_length(valid: list[Verdict]) -> dict[str, float] | None:
    if not valid:
        return None
    controlled = length_controlled_win_rate(
        [row["outcome"] for row in valid],
        [row["candidate_words"] for row in valid],
        [row["reference_words"] for row in valid],
    )
    return None if controlled is None else asdict(controlled)


def _letters(row: Verdict) -> list[str]:
    return [letter for answer in row["answers"] if (letter := parse_answer(answer))]
