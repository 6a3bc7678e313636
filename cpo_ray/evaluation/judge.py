"""The pairwise judge: which response is more helpful, the model's or the ground truth's?

Any OpenAI-compatible model judges. By default each pair is asked in both orders, because judges prefer a position: a judge
that changes its mind with the order has no opinion, so a flip is a tie, and is counted. An answer that is neither A nor B
is never a verdict.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from cpo_ray.artifacts import Summary
from cpo_ray.client import Client, Journal, content_key, run_bounded, write_rows
from cpo_ray.config import JudgeConfig
from cpo_ray.errors import ArtifactError, ServiceError
from cpo_ray.records import Generation, Verdict

# The paper's A.3, verbatim, blanks and curly quotes included.
DOLLY_TEMPLATE = (
    "For the following query to a chatbot, which response is more helpful?\n"
    " Query: {} \n"
    " Response A: {} \n"
    " Response B: {} \n"
    " State only “A” or “B” to indicate which response is more helpful. \n"
    " More helpful:"
)
WIKI_TEMPLATE = (
    "For the following prefix, which continuation is better?\n"
    " Prefix: {} \n"
    " Continuation A: {} \n"
    " Continuation B: {} \n"
    " State only “A” or “B” to indicate which continuation is more helpful. \n"
    " Better:"
)
TEMPLATES = {"dolly": DOLLY_TEMPLATE, "wiki": WIKI_TEMPLATE}
LONGEST_ANSWER = 16  # tokens; one letter is asked for

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
    """
    if None in answers:
        return "invalid", False
    preferred = {(answer == "A") == first for answer, first in zip(answers, candidate_first, strict=True)}
    if len(preferred) > 1:
        return "tie", True
    return ("win" if preferred.pop() else "loss"), False


def judge_answers(
    generations: Sequence[Generation],
    url: str,
    key: str,
    config: JudgeConfig,
    seed: int,
    out: Path,
    on_row: Callable[[], None],
) -> Summary:
    """Judge every response against its `reference` and write records.Verdict rows to `out`, in the given order.

    `url` ends in /v1; `config.url` and the key's variable are the caller's to resolve. The template is the paper's
    (A.3), temperature 0. Answers are kept by content in `<stem>.answers` beside `out`: a rerun asks nothing twice.
    `on_row()` is called once per row. Returns {"judge", "order", "n", "wins", "losses", "ties", "invalid", "flip_rate",
    "mean_length_candidate", "mean_length_reference", "win_rate"}: lengths in words, win_rate = (wins + ties / 2) / valid
    and flip_rate = flips / valid, both None where nothing is valid (flip_rate also where one order was asked).

    Raises ServiceError where the judge refuses or keeps failing, or more than `config.max_invalid_fraction` of the rows
    are invalid; ArtifactError where there is nothing to judge.
    """
    if not generations:
        raise ArtifactError("there are no generations to judge")
    orders = [candidate_orders(config.order, seed, row["id"]) for row in generations]
    questions = [
        [_ask_about(row, first, config) for first in order] for row, order in zip(generations, orders, strict=True)
    ]
    with Journal(out.with_name(f"{out.stem}.answers")) as journal:
        asyncio.run(_ask_all(Client(url, key, config.retries), questions, journal, config.concurrency, on_row))
        journal.sort()
        verdicts = [
            _to_verdict(row, [journal[content_key(body)] for body in bodies], order)
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


def candidate_orders(order: str, seed: int, row_id: str) -> tuple[bool, ...]:
    """For each question about a row, whether the candidate stands first: both, or one drawn by (seed, id)."""
    if order == "both":
        return (True, False)
    return (hashlib.sha256(f"{seed}:judge:{row_id}".encode()).digest()[0] % 2 == 0,)


async def _ask_all(
    client: Client,
    questions: list[list[dict[str, Any]]],
    journal: Journal,
    concurrency: int,
    on_row: Callable[[], None],
) -> None:
    asking: dict[str, asyncio.Lock] = {}

    async def ask(bodies: list[dict[str, Any]]) -> None:
        for body in bodies:
            key = content_key(body)
            async with asking.setdefault(key, asyncio.Lock()):  # equal pairs are asked about once
                if key not in journal:
                    journal.add(key, _read_answer(await client.post("/chat/completions", body)))
        on_row()

    async with client:
        await run_bounded(questions, concurrency, ask)


def _ask_about(row: Generation, candidate_first: bool, config: JudgeConfig) -> dict[str, Any]:
    first, second = row["response"], row["reference"]
    if not candidate_first:
        first, second = second, first
    content = TEMPLATES[config.template].format(row["prompt"], first, second)
    return {
        "model": config.model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": LONGEST_ANSWER,
    }


def _read_answer(answer: dict[str, Any]) -> str:
    """The judge's words; an empty message (a refusal, say) is an answer too, and an invalid one."""
    try:
        return str(answer["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError) as error:
        raise ServiceError(f"the judge's answer has no {error}: {str(answer)[:300]}") from None


def _to_verdict(row: Generation, answers: list[str], candidate_first: Sequence[bool]) -> Verdict:
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
    counts = {what: sum(row["outcome"] == what for row in verdicts) for what in ("win", "loss", "tie", "invalid")}
    total, valid = len(verdicts), len(verdicts) - counts["invalid"]
    flips = sum(row["flipped"] for row in verdicts)
    return {
        "judge": config.model,
        "order": config.order,
        "n": total,
        "wins": counts["win"],
        "losses": counts["loss"],
        "ties": counts["tie"],
        "invalid": counts["invalid"],
        "flip_rate": flips / valid if valid and config.order == "both" else None,
        "mean_length_candidate": sum(row["candidate_words"] for row in verdicts) / total,
        "mean_length_reference": sum(row["reference_words"] for row in verdicts) / total,
        "win_rate": (counts["win"] + counts["tie"] / 2) / valid if valid else None,
    }
