"""Unhelpful negatives (the paper's DPO baseline, A.4): written by an LLM behind an OpenAI-compatible API.

The driver sends all requests before the actors start, so a refusal or an exhausted budget costs no GPU time. It prints an
estimate of the cost before the first request. The answers are kept in one journal in the run directory.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cpo_ray.artifacts import Journal, Summary, content_key
from cpo_ray.config import RunConfig, UnhelpfulConfig
from cpo_ray.errors import ConfigError, DataError, ServiceError
from cpo_ray.inference.client import Client, RefusedError, jittered, read_key, run_bounded
from cpo_ray.monitoring.console import say
from cpo_ray.records import Tokens, without_eos
from cpo_ray.sampling.negatives.budget import Budget, Usage
from cpo_ray.sampling.responses import count_tokens, encode_responses
from cpo_ray.sampling.seeding import draw_seed
from cpo_ray.sampling.selection import BatchPlan, Selection, check_batches
from cpo_ray.sampling.units import UNHELPFUL, UNHELPFUL_REDRAWS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The paper's A.4, verbatim, with its spaces.
TEMPLATE = (
    "Given the ground truth instruction and response, can you generate a not helpful response?\n"
    " Instruction: {} \n"
    " Response: {} \n"
    " Not helpful response:"
)
SEEDS = 2**31  # every API accepts seeds below this
NO_ANSWER = "no unhelpful response, for the API's answers were empty or it refused the request"
ONE_ROW_STATUSES = {400, 413, 422}  # HTTP statuses that concern one row: prompt too long, or filtered
PROGRESS_EVERY_S = 30.0


@dataclass(frozen=True)
class UnhelpfulRequest:
    """One attempt at one unhelpful response to one row."""

    row: str
    body: dict[str, Any]
    key: str  # of the answer in the journal: a hash of the request's content
    tokens: int  # of the prompt, counted with the reference's tokenizer


@dataclass
class RowAnswers:
    """The unhelpful responses of one row: fewer than configured if the API returned none."""

    negatives: list[Tokens]
    redraws: int = 0
    refusal: str = ""  # the API's message, if it refused a request


def add_unhelpful(
    selection: Selection,
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerFast",
    journal: Path,
    batches: BatchPlan | None = None,
) -> tuple[Selection, Summary]:
    """Request `sampling.negatives.unhelpful` responses for each row. Returns the rows with two more columns, and a summary.

    tokenizer: the reference's. journal: the answers on disk, including those of earlier attempts at this run. batches: see
    `select_rows`.
    An answer that is empty or equals the gold or an earlier answer of its row is requested again, at most `sampling.redraws`
    times; a repeated answer is then kept. A row with only empty answers, or whose request the API refuses (400, 413 or 422),
    follows `data.on_bad_row`.

    Raises ConfigError if the key is missing or the estimate exceeds a cap, ServiceError if the API refuses, fails repeatedly
    or a cap is reached (answers so far are kept), DataError for a row without an answer or a batch without enough rows.
    """
    settings = config.sampling.unhelpful
    key = read_key(settings.key_variable)
    if not key or settings.url is None:
        raise ConfigError(
            f"the API of unhelpful negatives at {settings.url} needs its key in the environment variable "
            f"{settings.key_variable}"
        )
    started = time.monotonic()
    with Journal(journal) as answers:
        writer = UnhelpfulWriter(config, tokenizer, answers)
        rows = selection.table.select(["id", "prompt", "response", "response_ids"]).to_pylist()
        writer.estimate(rows)
        client = Client(settings.url, key, settings.retries, settings.timeout_s, settings.requests_per_minute)
        answered = asyncio.run(writer.write(rows, client))
        answers.sort()
    wanted = config.sampling.negatives.unhelpful
    incomplete = [row["id"] for row in rows if len(answered[row["id"]].negatives) < wanted]
    if incomplete and (config.data.on_bad_row == "error" or len(incomplete) == len(rows)):
        raise _no_answer(incomplete, answered, len(rows))
    selection = _with_columns(selection, answered, incomplete)
    check_batches(selection.table, config.sampling, batches)  # again, because rows may have been left out
    return selection, writer.summary(time.monotonic() - started)


class UnhelpfulWriter:
    """Sends the requests within the budget and keeps every answer in the journal."""

    def __init__(self, config: RunConfig, tokenizer: "PreTrainedTokenizerFast", journal: Journal) -> None:
        self.config, self.tokenizer, self.journal = config, tokenizer, journal
        self.settings: UnhelpfulConfig = config.sampling.unhelpful
        self.max_tokens = self.settings.max_tokens or config.data.max_response_tokens
        self.budget = Budget(self.settings, [Usage(**entry["usage"]) for entry in journal.entries.values()])
        self.prompt_tokens: dict[str, int] = {}
        self.asked = self.tokens = 0
        self.failure: ServiceError | None = None  # the first one; answers to requests in flight are still kept

    def estimate(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print the maximum cost of the unanswered first draws. Raises ConfigError if it exceeds a cap."""
        counts = range(self.config.sampling.negatives.unhelpful)
        contents = [TEMPLATE.format(row["prompt"], row["response"]) for row in rows]
        lengths = count_tokens(self.tokenizer, contents)
        self.prompt_tokens = dict(zip((row["id"] for row in rows), lengths, strict=True))
        requests = [self.build_request(row, index, 0) for row in rows for index in counts]
        left = [request for request in requests if request.key not in self.journal]
        most = Usage(len(left), sum(request.tokens for request in left), len(left) * self.max_tokens)
        say(
            f"  unhelpful negatives: {len(requests) - len(left):,} on disk, {self.budget.describe(most)} to send to "
            f"{self.settings.model}"
        )
        self.budget.check(most)

    async def write(self, rows: Sequence[dict[str, Any]], client: Client) -> dict[str, RowAnswers]:
        """The answers of every row, by row id."""
        answered: dict[str, RowAnswers] = {}
        printed = time.monotonic()

        async def answer(row: dict[str, Any]) -> None:
            nonlocal printed
            try:
                answered[row["id"]] = await self.answer(row, client)
            except RefusedError as error:
                if error.status not in ONE_ROW_STATUSES:
                    self.failure = self.failure or error
                answered[row["id"]] = RowAnswers([], refusal=str(error))
            except ServiceError as error:
                self.failure = self.failure or error
            if time.monotonic() - printed > PROGRESS_EVERY_S:
                printed = time.monotonic()
                say(f"  unhelpful negatives: {len(answered):,} of {len(rows):,} rows")

        async with client:
            await run_bounded(rows, self.settings.concurrency, answer)
        if self.failure is not None:
            raise self.failure
        return answered

    async def answer(self, row: dict[str, Any], client: Client) -> RowAnswers:
        """The unhelpful responses of a row. Empty and repeated ones are requested again."""
        answered = RowAnswers([])
        seen = {tuple(row["response_ids"])}
        for index in range(self.config.sampling.negatives.unhelpful):
            kept: Tokens | None = None
            for attempt in range(1 + self.config.sampling.redraws):
                text, is_cut = await self.ask(self.build_request(row, index, attempt), client)
                negative = self.encode(text, is_cut) if text else None
                answered.redraws += attempt > 0
                kept = negative or kept
                if negative is not None and tuple(negative) not in seen:
                    break
            if kept is None:
                break
            answered.negatives.append(kept)
            seen.add(tuple(kept))
        return answered

    async def ask(self, request: UnhelpfulRequest, client: Client) -> tuple[str, bool]:
        """The answer, from the journal or the API, and whether the API cut it. Empty if the model's message is empty."""
        if request.key not in self.journal:
            text, is_cut, used = await self.send(request, client)
            self.journal.add(request.key, {"text": text, "usage": vars(used)} | ({"cut": True} if is_cut else {}))
            self.asked += 1
            self.tokens += used.output_tokens
        entry = self.journal[request.key]
        return str(entry["text"]), "cut" in entry

    async def send(self, request: UnhelpfulRequest, client: Client) -> tuple[str, bool, Usage]:
        """The API's answer, whether the API cut it, and its cost. A reply that is not a chat completion is retried."""
        reserved, reply = Usage(1, request.tokens, self.max_tokens), {}
        for attempt in range(1 + self.settings.retries):
            if self.failure is not None:
                raise self.failure
            self.budget.reserve(reserved)
            try:
                reply = await client.post("/chat/completions", request.body)
            except ServiceError:
                self.budget.settle(reserved, Usage())
                raise
            text = _read_text(reply)
            counted = Usage(1, request.tokens, len(self.encode(text)) if text else 0)
            used = _read_usage(reply) or counted
            self.budget.settle(reserved, used)
            if text is not None:
                return text, reply["choices"][0].get("finish_reason") == "length", used
            self.record_charge(request, used)
            await asyncio.sleep(jittered(attempt))
        raise ServiceError(
            f"sampling.unhelpful.url: the answers for row {request.row} are not chat completions, after "
            f"{1 + self.settings.retries} attempts: {str(reply)[:300]}. The earlier answers are kept; run the same command "
            "to continue."
        )

    def record_charge(self, request: UnhelpfulRequest, used: Usage) -> None:
        """Keep the cost of an invalid reply, which may have been billed, so that the caps hold across restarts."""
        number = sum(entry.get("instead_of") == request.key for entry in self.journal.entries.values())
        charge = {"instead_of": request.key, "usage": vars(used)}
        self.journal.add(content_key([request.key, number]), charge)

    def encode(self, text: str, is_cut: bool = False) -> Tokens:
        """The text as a continuation, tokenized like the golds. An answer that was cut has no EOS."""
        (tokens,) = encode_responses(self.tokenizer, [text], self.config.data.max_response_tokens)
        return without_eos(tokens, self.tokenizer.eos_token_id) if is_cut else tokens

    def build_request(self, row: dict[str, Any], index: int, attempt: int) -> UnhelpfulRequest:
        """The request of attempt `attempt` at draw `index` of a row."""
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": TEMPLATE.format(row["prompt"], row["response"])}],
            "temperature": self.settings.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.settings.seeded:
            body["seed"] = draw_seed(self.config.seed, row["id"], UNHELPFUL, index, attempt) % SEEDS
        key = content_key({"url": self.settings.url, "body": body, "row": row["id"], "draw": [index, attempt]})
        return UnhelpfulRequest(row["id"], body, key, self.prompt_tokens[row["id"]])

    def summary(self, seconds: float) -> Summary:
        """The requests of this call, and the total cost of all answers on disk."""
        spent = self.budget.spent
        summary: Summary = {"asked": self.asked, "answers": spent.requests, "seconds": round(seconds, 1)}
        summary |= {"input_tokens": spent.input_tokens, "output_tokens": spent.output_tokens}
        summary["tokens_per_second"] = self.tokens / seconds if self.asked else None
        price = self.budget.price(spent)
        return summary if price is None else summary | {"price": round(price, 4)}


def _read_text(reply: dict[str, Any]) -> str | None:
    """The stripped text of the model's message, which may be empty (a refusal); None if the reply is not a chat completion."""
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return content.strip() if isinstance(content, str) else "" if content is None else None


def _read_usage(reply: dict[str, Any]) -> Usage | None:
    """The API's own token count; None without a valid one."""
    usage = reply.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (isinstance(prompt, int) and isinstance(completion, int)) or min(prompt, completion) < 0:
        return None
    return Usage(1, prompt, completion)


def _no_answer(incomplete: Sequence[str], answered: dict[str, RowAnswers], rows: int) -> DataError:
    refusal = next(filter(None, (answered[row].refusal for row in incomplete)), "")
    return DataError(
        f"training row {incomplete[0]} and {len(incomplete) - 1} more of {rows}: {NO_ANSWER}. {refusal} "
        "Set data.on_bad_row: quarantine to leave such rows out of the groups, with a count."
    )


def _with_columns(selection: Selection, answered: dict[str, RowAnswers], incomplete: Sequence[str]) -> Selection:
    table, left_out, dropped = selection.table, dict(selection.left_out), set(incomplete)
    if incomplete:
        table = table.filter(pa.array([row not in dropped for row in table["id"].to_pylist()])).combine_chunks()
        left_out[NO_ANSWER] = len(incomplete)
    rows = [answered[row] for row in table["id"].to_pylist()]
    negatives = pa.array([row.negatives for row in rows], pa.list_(pa.list_(pa.int32())))
    table = table.append_column(UNHELPFUL, negatives)
    table = table.append_column(UNHELPFUL_REDRAWS, pa.array([row.redraws for row in rows], pa.int64()))
    return replace(selection, table=table, left_out=left_out)
