"""Unhelpful negatives (the paper's DPO baseline, A.4): an LLM behind an OpenAI-compatible API is asked for them.

Everything is asked before the actors start, from the driver: the answers lie in one journal in the run directory, a
refusal or an exhausted budget costs no GPU time, and the estimate is told before the first request.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from cpo_ray.artifacts import Journal, Summary, content_key
from cpo_ray.config import RunConfig, UnhelpfulConfig
from cpo_ray.errors import ConfigError, DataError, ServiceError
from cpo_ray.inference.client import Client, RefusedError, jittered, read_key, run_bounded
from cpo_ray.monitoring.console import say
from cpo_ray.sampling.negatives.budget import Budget, Usage
from cpo_ray.sampling.negatives.context import Tokens
from cpo_ray.sampling.responses import Tokenizer, count_tokens, encode_responses
from cpo_ray.sampling.seeding import draw_seed
from cpo_ray.sampling.selection import Batches, Selection, check_batches
from cpo_ray.sampling.units import UNHELPFUL, UNHELPFUL_REDRAWS

# The paper's A.4, verbatim, blanks included.
TEMPLATE = (
    "Given the ground truth instruction and response, can you generate a not helpful response?\n"
    " Instruction: {} \n"
    " Response: {} \n"
    " Not helpful response:"
)
SEEDS = 2**31  # what every API takes as a seed
NO_ANSWER = "no unhelpful response, for the API's answers were empty or it refused the request"
ABOUT_ONE_ROW = {400, 413, 422}  # refusals of this one request: too long for the model, or filtered
TOLD_EVERY_S = 30.0


@dataclass(frozen=True)
class Question:
    """One attempt at one unhelpful response to one row."""

    row: str
    body: dict[str, Any]
    key: str  # where the journal keeps the answer: the content of what is asked
    tokens: int  # of the prompt, by the reference's tokenizer


@dataclass
class Answered:
    """The unhelpful responses of one row, fewer than wanted where the API gave none."""

    negatives: list[Tokens]
    redraws: int = 0
    refusal: str = ""  # what the API said to a request that it would not answer


def add_unhelpful(
    selection: Selection, config: RunConfig, tokenizer: Tokenizer, journal: Path, batches: Batches | None = None
) -> tuple[Selection, Summary]:
    """Ask for `sampling.negatives.unhelpful` responses to each row: they become two columns of the selected rows.

    tokenizer: the reference's. journal: the answers on disk, those of earlier attempts at this run included.
    batches: see `select_rows`.
    An answer that is empty, equals the gold or an earlier one of its row is asked for anew, `sampling.redraws` times at the
    most; what then still repeats is kept. A row with nothing but empty answers, or one that the API refuses to answer (400,
    413 or 422), follows `data.on_bad_row`.

    Raises ConfigError where the key is missing or the estimate exceeds a cap, ServiceError where the API refuses, keeps
    failing, or a cap is reached (what was answered is kept), DataError for a row without an answer or a batch without
    enough rows.
    """
    settings = config.sampling.unhelpful
    key = read_key(settings.key_variable)
    if not key or settings.url is None:
        raise ConfigError(
            f"the API of unhelpful negatives at {settings.url} needs its key in the environment variable "
            f"{settings.key_variable}"
        )
    began = time.monotonic()
    with Journal(journal) as answers:
        writer = Writer(config, tokenizer, answers)
        rows = selection.table.select(["id", "prompt", "response", "response_ids"]).to_pylist()
        writer.estimate(rows)
        client = Client(settings.url, key, settings.retries, settings.timeout_s, settings.requests_per_minute)
        answered = asyncio.run(writer.write(rows, client))
        answers.sort()
    wanted = config.sampling.negatives.unhelpful
    lacking = [row["id"] for row in rows if len(answered[row["id"]].negatives) < wanted]
    if lacking and (config.data.on_bad_row == "error" or len(lacking) == len(rows)):
        refusal = next(filter(None, (answered[row].refusal for row in lacking)), "")
        raise DataError(
            f"training row {lacking[0]} and {len(lacking) - 1} more of {len(rows)}: {NO_ANSWER}. {refusal} "
            "Set data.on_bad_row: quarantine to leave such rows out of the groups, with a count."
        )
    selection = _with_columns(selection, answered, lacking)
    check_batches(selection.table, config, batches)  # rows may have been left out
    return selection, writer.summary(time.monotonic() - began)


class Writer:
    """Asks one question after another within the budget, and keeps every answer."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, journal: Journal) -> None:
        self.config, self.tokenizer, self.journal = config, tokenizer, journal
        self.settings: UnhelpfulConfig = config.sampling.unhelpful
        self.longest = self.settings.max_tokens or config.data.max_response_tokens
        self.budget = Budget(self.settings, [Usage(**entry["usage"]) for entry in journal.entries.values()])
        self.prompt_tokens: dict[str, int] = {}
        self.asked = self.tokens = 0
        self.failure: ServiceError | None = None  # the first; what is under way then is paid for, and so still kept

    def estimate(self, rows: Sequence[dict[str, Any]]) -> None:
        """Tell what the unanswered first draws will cost at the most. Raises ConfigError where that exceeds a cap."""
        counts = range(self.config.sampling.negatives.unhelpful)
        contents = [TEMPLATE.format(row["prompt"], row["response"]) for row in rows]
        lengths = count_tokens(self.tokenizer, contents)
        self.prompt_tokens = dict(zip((row["id"] for row in rows), lengths, strict=True))
        questions = [self.question(row, index, 0) for row in rows for index in counts]
        left = [question for question in questions if question.key not in self.journal]
        most = Usage(len(left), sum(question.tokens for question in left), len(left) * self.longest)
        say(
            f"  unhelpful negatives: {len(questions) - len(left):,} on disk, {self.budget.describe(most)} to ask of "
            f"{self.settings.model}"
        )
        self.budget.check(most)

    async def write(self, rows: Sequence[dict[str, Any]], client: Client) -> dict[str, Answered]:
        """Every row's answers, by row id."""
        answered: dict[str, Answered] = {}
        told = time.monotonic()

        async def answer(row: dict[str, Any]) -> None:
            nonlocal told
            try:
                answered[row["id"]] = await self.answer(row, client)
            except RefusedError as error:
                if error.status not in ABOUT_ONE_ROW:
                    self.failure = self.failure or error
                answered[row["id"]] = Answered([], refusal=str(error))
            except ServiceError as error:
                self.failure = self.failure or error
            if time.monotonic() - told > TOLD_EVERY_S:
                told = time.monotonic()
                say(f"  unhelpful negatives: {len(answered):,} of {len(rows):,} rows")

        async with client:
            await run_bounded(rows, self.settings.concurrency, answer)
        if self.failure is not None:
            raise self.failure
        return answered

    async def answer(self, row: dict[str, Any], client: Client) -> Answered:
        """The row's unhelpful responses, drawn again where they repeat or are empty."""
        answered = Answered([])
        seen = {tuple(row["response_ids"])}
        for index in range(self.config.sampling.negatives.unhelpful):
            kept: Tokens | None = None
            for attempt in range(1 + self.config.sampling.redraws):
                text = await self.ask(self.question(row, index, attempt), client)
                negative = self.encode(text) if text else None
                answered.redraws += attempt > 0
                kept = negative or kept
                if negative is not None and tuple(negative) not in seen:
                    break
            if kept is None:
                break
            answered.negatives.append(kept)
            seen.add(tuple(kept))
        return answered

    async def ask(self, question: Question, client: Client) -> str:
        """The answer, from the journal or from the API; empty where the model said nothing."""
        if question.key not in self.journal:
            text, used = await self.request(question, client)
            self.journal.add(question.key, {"text": text, "usage": vars(used)})
            self.asked += 1
            self.tokens += used.output_tokens
        return str(self.journal[question.key]["text"])

    async def request(self, question: Question, client: Client) -> tuple[str, Usage]:
        """The API's answer, and what it cost. A reply that is no chat completion is asked for again, as a 500 is."""
        reserved, reply = Usage(1, question.tokens, self.longest), {}
        for attempt in range(1 + self.settings.retries):
            if self.failure is not None:
                raise self.failure
            self.budget.reserve(reserved)
            try:
                reply = await client.post("/chat/completions", question.body)
            except ServiceError:
                self.budget.settle(reserved, Usage())
                raise
            text = _read_text(reply)
            counted = Usage(1, question.tokens, len(self.encode(text)) if text else 0)
            used = _read_usage(reply) or counted
            self.budget.settle(reserved, used)
            if text is not None:
                return text, used
            self.keep_charge(question, used)
            await asyncio.sleep(jittered(attempt))
        raise ServiceError(
            f"sampling.unhelpful.url: the answers for row {question.row} are no chat completions, after "
            f"{1 + self.settings.retries} tries: {str(reply)[:300]}. What was answered before is kept; the same command goes "
            "on."
        )

    def keep_charge(self, question: Question, used: Usage) -> None:
        """A reply that is no answer may have been billed all the same: the caps hold over restarts."""
        number = sum(entry.get("instead_of") == question.key for entry in self.journal.entries.values())
        charge = {"instead_of": question.key, "usage": vars(used)}
        self.journal.add(content_key([question.key, number]), charge)

    def encode(self, text: str) -> Tokens:
        """The text as a continuation, as the golds were made."""
        return encode_responses(self.tokenizer, [text], self.config.data.max_response_tokens)[0]

    def question(self, row: dict[str, Any], index: int, attempt: int) -> Question:
        """What is asked for draw `index` of a row, the `attempt`-th time."""
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": TEMPLATE.format(row["prompt"], row["response"])}],
            "temperature": self.settings.temperature,
            "max_tokens": self.longest,
        }
        if self.settings.seeded:
            body["seed"] = draw_seed(self.config.seed, row["id"], UNHELPFUL, index, attempt) % SEEDS
        key = content_key({"url": self.settings.url, "body": body, "row": row["id"], "draw": [index, attempt]})
        return Question(row["id"], body, key, self.prompt_tokens[row["id"]])

    def summary(self, seconds: float) -> Summary:
        """What was asked now, and what all answers on disk have cost."""
        spent = self.budget.spent
        summary: Summary = {"asked": self.asked, "answers": spent.requests, "seconds": round(seconds, 1)}
        summary |= {"input_tokens": spent.input_tokens, "output_tokens": spent.output_tokens}
        summary["tokens_per_second"] = self.tokens / seconds if self.asked else None
        price = self.budget.price(spent)
        return summary if price is None else summary | {"price": round(price, 4)}


def _read_text(reply: dict[str, Any]) -> str | None:
    """The model's words without the blanks around them, which may be none (a refusal, say); None for what is no answer."""
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return content.strip() if isinstance(content, str) else "" if content is None else None


def _read_usage(reply: dict[str, Any]) -> Usage | None:
    """The API's own count, where it gives one."""
    usage = reply.get("usage")
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (isinstance(read, int) and isinstance(written, int)) or min(read, written) < 0:
        return None
    return Usage(1, read, written)


def _with_columns(selection: Selection, answered: dict[str, Answered], lacking: Sequence[str]) -> Selection:
    table, left_out, absent = selection.table, dict(selection.left_out), set(lacking)
    if lacking:
        table = table.filter(pa.array([row not in absent for row in table["id"].to_pylist()])).combine_chunks()
        left_out[NO_ANSWER] = len(lacking)
    rows = [answered[row] for row in table["id"].to_pylist()]
    negatives = pa.array([row.negatives for row in rows], pa.list_(pa.list_(pa.int32())))
    table = table.append_column(UNHELPFUL, negatives)
    table = table.append_column(UNHELPFUL_REDRAWS, pa.array([row.redraws for row in rows], pa.int64()))
    return replace(selection, table=table, left_out=left_out)
