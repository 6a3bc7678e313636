"""`cpo-ray judge`: two files of answers to the same prompts, and a judge that says which are better."""

import hashlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.markup import escape

from cpo_ray.commands.failures import INTERRUPTED
from cpo_ray.config import JudgeConfig
from cpo_ray.errors import ConfigError
from cpo_ray.monitoring.console import bar, say

if TYPE_CHECKING:
    from cpo_ray.evaluation.judge import Estimate

VERDICTS, SUMMARY = "verdicts.jsonl", "summary.json"
SIGNIFICANT = 0.05


class Order(StrEnum):
    """How often, and in which order, a pair is shown."""

    BOTH = "both"
    PAPER = "paper"


class Api(StrEnum):
    """What the judge is asked through."""

    CHAT = "chat"
    COMPLETIONS = "completions"


def judge(
    candidates: Annotated[
        Path,
        typer.Option("--candidates", metavar="FILE", help='JSONL rows {"id", "prompt", "response"}: who is judged.'),
    ],
    references: Annotated[
        Path,
        typer.Option("--references", metavar="FILE", help="The same prompts' answers to compare with, matched by id."),
    ],
    judge_url: Annotated[
        str, typer.Option("--judge-url", metavar="URL", help="An OpenAI-compatible API, ending in /v1.")
    ],
    judge_model: Annotated[str, typer.Option("--judge-model", metavar="NAME", help="The judge's model name there.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help=f"For {VERDICTS}, {SUMMARY} and the answers, kept for a rerun.")
    ],
    template: Annotated[
        str,
        typer.Option(
            "--template",
            metavar="dolly|wiki|FILE",
            help="The paper's query, or a file with the places {prompt}, {response_a} and {response_b}.",
        ),
    ] = "dolly",
    order: Annotated[
        Order, typer.Option("--order", help="Ask in both orders (a flip is a tie), or once in random order.")
    ] = Order.BOTH,
    api: Annotated[
        Api, typer.Option("--api", help="`completions` for a base model, which has no chat template.")
    ] = Api.CHAT,
    thinking_tokens: Annotated[
        int,
        typer.Option(
            "--thinking-tokens",
            metavar="N",
            min=0,
            help="For a judge that thinks first: room for it, as max_completion_tokens and without a temperature.",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the order for --order paper.")] = 17,
    key_variable: Annotated[
        str, typer.Option("--key-variable", metavar="NAME", help="The environment variable with the judge's key.")
    ] = "CPO_RAY_JUDGE_KEY",
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests under way at once.")] = 16,
    requests_per_minute: Annotated[
        float | None, typer.Option("--requests-per-minute", metavar="N", help="Default: no limit of our own.")
    ] = None,
    retries: Annotated[int, typer.Option("--retries", min=0, help="After 429, 5xx and dropped connections.")] = 8,
    max_invalid_fraction: Annotated[
        float,
        typer.Option("--max-invalid-fraction", min=0, max=1, help="More rows that are neither A nor B fail."),
    ] = 0.05,
    price: Annotated[
        float | None, typer.Option("--price", min=0, help="Of a million tokens, to estimate the cost.")
    ] = None,
    price_answers: Annotated[
        float | None, typer.Option("--price-answers", min=0, help="Of a million tokens in answers. Default: --price.")
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option("--max-requests", min=0, help="Go on without asking up to so many, and not beyond.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Go on without asking.")] = False,
) -> None:
    """Let a judge compare two files of answers. Says what it will ask for before it does.

    The same command goes on after an interruption, and asks nothing twice.
    """
    try:
        config = JudgeConfig(
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
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors())
        raise ConfigError("; ".join(problems)) from None
    key = _read_key(config)

    from cpo_ray.artifacts import lock_run, write_json
    from cpo_ray.evaluation.judge import estimate_cost, judge_answers
    from cpo_ray.evaluation.pairs import read_pairs
    from cpo_ray.evaluation.templates import read_template

    verdicts, summary_file = out / VERDICTS, out / SUMMARY
    pairs = read_pairs(candidates, references)
    inputs = {"candidates": _describe(candidates), "references": _describe(references)}
    with lock_run(out):
        estimate = estimate_cost(pairs, config, seed, verdicts)
        _agree(estimate, _told_price(estimate, price, price_answers), max_requests, yes=yes)
        summary_file.unlink(missing_ok=True)  # it tells of verdicts that are about to be replaced
        try:
            with bar("judge", len(pairs), "pairs") as progress:
                summary = judge_answers(pairs, config.url, key, config, seed, verdicts, progress.advance)
        except KeyboardInterrupt:
            say("Stopped. The same command goes on, and asks nothing twice.")
            raise typer.Exit(INTERRUPTED) from None
        asked = {"judge_url": config.url, "seed": seed, "template": read_template(template), "inputs": inputs}
        write_json(summary_file, summary | asked)
    for line in tell_summary(summary):
        say(escape(line))
    say(f"[bold]{escape(str(summary_file))}[/]")


def tell_summary(summary: dict[str, Any]) -> list[str]:
    """What came out, in a few lines; what is not significant is called so."""
    counts = ", ".join(f"{summary[what]:,} {what}" for what in ("wins", "losses", "ties", "invalid"))
    lines = [f"{summary['n']:,} pairs: {counts}"]
    if summary["win_rate"] is None:
        return [*lines, "no valid verdict, so no win rate"]
    low, high = summary["ci95"]
    even = "" if high < 0.5 or low > 0.5 else ": not significantly different from 50%"
    lines.append(f"win rate {summary['win_rate']:.1%}, 95% interval {low:.1%} to {high:.1%}{even}")
    lengths = f"mean length {summary['mean_length_candidate']:.1f} words against {summary['mean_length_reference']:.1f}"
    controlled = summary["length_controlled"]
    if controlled:
        lengths += f"; at equal lengths {controlled['rate']:.1%} ({controlled['low']:.1%} to {controlled['high']:.1%})"
    lines.append(lengths)
    bias = summary["position_bias"]
    if bias is None:
        return [*lines, "both responses of every pair are the same: nothing was asked"]
    lean = "no significant preference" if bias["p_value"] >= SIGNIFICANT else f"a preference, p = {bias['p_value']:.2g}"
    flips = "" if summary["flip_rate"] is None else f"{summary['flip_rate']:.1%} of the pairs flipped with the order; "
    lines.append(f"{flips}the first position was chosen {bias['rate']:.1%} of the time ({lean})")
    return lines


def _read_key(config: JudgeConfig) -> str:
    from cpo_ray.inference.client import read_key

    if not config.url.startswith(("http://", "https://")):
        raise ConfigError(f"--judge-url {config.url}: expected http:// or https://, ending in /v1")
    key = read_key(config.key_variable)
    if not key:
        raise ConfigError(
            f"the judge at {config.url} needs its key in the environment variable {config.key_variable}; "
            "where a judge asks for none, set it to anything"
        )
    return key


def _agree(estimate: "Estimate", price: str, limit: int | None, *, yes: bool) -> None:
    """Say what it takes. Raises ConfigError beyond the limit, or where nobody can be asked; Exit where the answer is no."""
    say(escape(f"{estimate}{price}"))
    if limit is not None and estimate.requests > limit:
        raise ConfigError(f"{estimate.requests:,} requests are more than --max-requests {limit:,}")
    if yes or limit is not None or not estimate.requests:
        return
    if not _someone_is_here():
        raise ConfigError("nobody is here to agree to this: add --yes, or --max-requests N")
    typer.confirm("Go on?", abort=True)


def _someone_is_here() -> bool:
    return sys.stdin.isatty()


def _told_price(estimate: "Estimate", price: float | None, price_answers: float | None) -> str:
    if price is None:
        if price_answers is not None:
            raise ConfigError("--price-answers needs --price, that of the tokens asked with")
        return ""
    cost = estimate.price(price, price if price_answers is None else price_answers)
    return f": {cost:,.2f} at {price:g} a million tokens"


def _describe(file: Path) -> dict[str, str]:
    with file.open("rb") as handle:
        return {"file": str(file), "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
