"""`cpo-ray judge`: compare two files of answers to the same prompts with a judge."""

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.markup import escape

from cpo_ray.commands.failures import INTERRUPTED
from cpo_ray.config import JudgeConfig
from cpo_ray.errors import ConfigError
from cpo_ray.monitoring.console import progress_bar, say

if TYPE_CHECKING:
    from cpo_ray.evaluation.comparison import Comparison
    from cpo_ray.evaluation.judge import CostEstimate


class JudgingOrder(StrEnum):
    """In which order, and how often, the judge sees a pair."""

    BOTH = "both"
    PAPER = "paper"


class JudgeApi(StrEnum):
    """The API that the judge is called through."""

    CHAT = "chat"
    COMPLETIONS = "completions"


@dataclass(frozen=True)
class Approval:
    """The prices to show, and what the user approved in advance."""

    price: float | None  # per million prompt tokens
    price_answers: float | None  # per million answer tokens; None: `price`
    max_requests: int | None
    yes: bool


def judge(
    candidates: Annotated[
        Path,
        typer.Option("--candidates", metavar="FILE", help='JSONL rows {"id", "prompt", "response"} to judge.'),
    ],
    references: Annotated[
        Path,
        typer.Option(
            "--references", metavar="FILE", help="Answers to the same prompts to compare with, matched by id."
        ),
    ],
    judge_url: Annotated[
        str, typer.Option("--judge-url", metavar="URL", help="An OpenAI-compatible API, ending in /v1.")
    ],
    judge_model: Annotated[
        str, typer.Option("--judge-model", metavar="NAME", help="The judge's model name in that API.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="For verdicts.jsonl, summary.json and the judge's answers, kept for a rerun."
        ),
    ],
    template: Annotated[
        str,
        typer.Option(
            "--template",
            metavar="dolly|wiki|FILE",
            help="The paper's query, or a file with {prompt}, {response_a} and {response_b}.",
        ),
    ] = "dolly",
    order: Annotated[
        JudgingOrder, typer.Option("--order", help="Ask in both orders (a flip is a tie), or once in random order.")
    ] = JudgingOrder.BOTH,
    api: Annotated[
        JudgeApi, typer.Option("--api", help="`completions` for a base model, which has no chat template.")
    ] = JudgeApi.CHAT,
    thinking_tokens: Annotated[
        int,
        typer.Option(
            "--thinking-tokens",
            metavar="N",
            min=0,
            help="For a judge that thinks: tokens to think, before </think>. Sends max_completion_tokens, no temperature.",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random order of --order paper.")] = 17,
    key_variable: Annotated[
        str, typer.Option("--key-variable", metavar="NAME", help="The environment variable with the judge's API key.")
    ] = "CPO_RAY_JUDGE_KEY",
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Concurrent requests.")] = 16,
    requests_per_minute: Annotated[
        float | None, typer.Option("--requests-per-minute", metavar="N", help="Rate limit. Default: none.")
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="Retries after 429, 5xx and dropped connections.")
    ] = 8,
    max_invalid_fraction: Annotated[
        float,
        typer.Option(
            "--max-invalid-fraction", min=0, max=1, help="Fail if a larger share of answers is neither A nor B."
        ),
    ] = 0.05,
    price: Annotated[
        float | None, typer.Option("--price", min=0, help="Price of a million tokens, to estimate the cost.")
    ] = None,
    price_answers: Annotated[
        float | None, typer.Option("--price-answers", min=0, help="Price of a million answer tokens. Default: --price.")
    ] = None,
    max_requests: Annotated[
        int | None,
        typer.Option("--max-requests", min=0, help="Continue without asking, and fail if more requests are needed."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Continue without asking.")] = False,
) -> None:
    """Compare two files of answers with a judge. Shows the number of requests and the cost before it sends any.

    After an interruption, the same command continues, and repeats no request.
    """
    config = judge_config(
        url=judge_url,
        model=judge_model,
        key_variable=key_variable,
        thinking_tokens=thinking_tokens,
        template=template,
        order=order.value,
        api=api.value,
        concurrency=concurrency,
        retries=retries,
        requests_per_minute=requests_per_minute,
        max_invalid_fraction=max_invalid_fraction,
    )
    key = _read_key(config)
    from cpo_ray.evaluation.comparison import SUMMARY, read_comparison, summary_lines

    comparison = read_comparison(candidates, references, config, seed)
    summary = _run(comparison, key, Approval(price, price_answers, max_requests, yes), out)
    for line in summary_lines(summary):
        say(escape(line))
    say(f"[bold]{escape(str(out / SUMMARY))}[/]")


def judge_config(**settings: Any) -> JudgeConfig:
    """The section `judge` of a configuration. Raises ConfigError, naming the key."""
    try:
        return JudgeConfig(**settings)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors())
        raise ConfigError("; ".join(problems)) from None


def _read_key(config: JudgeConfig) -> str:
    from cpo_ray.inference.client import read_key

    if not config.url.startswith(("http://", "https://")):
        raise ConfigError(f"--judge-url {config.url}: expected http:// or https://, ending in /v1")
    key = read_key(config.key_variable)
    if not key:
        raise ConfigError(
            f"the judge at {config.url} needs its key in the environment variable {config.key_variable}; "
            "if the judge requires no key, set it to any value"
        )
    return key


def _run(comparison: "Comparison", key: str, approval: Approval, out: Path) -> dict[str, Any]:
    """Show the cost, get the user's agreement, and judge. Raises Exit after Ctrl-C."""
    from cpo_ray.artifacts import lock_run

    with lock_run(out):
        _confirm_cost(comparison.estimate_cost(out), approval)
        try:
            with progress_bar("judge", len(comparison.pairs), "pairs") as progress:
                return comparison.run(key, out, progress.advance)
        except KeyboardInterrupt:
            say("Stopped. The same command continues, and repeats no request.")
            raise typer.Exit(INTERRUPTED) from None


def _confirm_cost(estimate: "CostEstimate", approval: Approval) -> None:
    """Print the estimate and ask the user to continue, unless it is approved in advance or needs no request.

    Raises ConfigError for more than `max_requests` requests, and if there is no terminal to ask on; Abort for the answer no.
    """
    say(escape(f"{estimate}{_format_price(estimate, approval)}"))
    limit = approval.max_requests
    if limit is not None and estimate.requests > limit:
        raise ConfigError(f"{estimate.requests:,} requests are more than --max-requests {limit:,}")
    if approval.yes or limit is not None or not estimate.requests:
        return
    if not _is_interactive():
        raise ConfigError("there is no terminal to confirm this on: add --yes, or --max-requests N")
    typer.confirm("Continue?", abort=True)


def _is_interactive() -> bool:
    return sys.stdin.isatty()


def _format_price(estimate: "CostEstimate", approval: Approval) -> str:
    price, price_answers = approval.price, approval.price_answers
    if price is None:
        if price_answers is not None:
            raise ConfigError("--price-answers needs --price, the price of the prompt tokens")
        return ""
    cost = estimate.price(price, price if price_answers is None else price_answers)
    return f": {cost:,.2f} at {price:g} a million tokens"
