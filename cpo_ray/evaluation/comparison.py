"""Compare two files of answers with a judge: the verdicts, their summary and the judge's answers go into one directory."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import Summary, write_json
from cpo_ray.config import JudgeConfig
from cpo_ray.evaluation.judge import CostEstimate, estimate_cost, judge_answers
from cpo_ray.evaluation.pairs import Pair, read_pairs
from cpo_ray.evaluation.templates import read_template

VERDICTS, SUMMARY = "verdicts.jsonl", "summary.json"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """Pairs of responses, the files that they come from, and how to judge them."""

    pairs: list[Pair]
    inputs: dict[str, dict[str, str]]  # `candidates` and `references` -> {"file", "sha256"}
    config: JudgeConfig
    seed: int

    def estimate_cost(self, out: Path) -> CostEstimate:
        """Estimate what `run` would request, without the answers that `out` has already."""
        return estimate_cost(self.pairs, self.config, self.seed, out / VERDICTS)

    def run(self, key: str, out: Path, on_row: Callable[[], None]) -> Summary:
        """Judge the pairs (see `judge.judge_answers`), write VERDICTS and SUMMARY into `out`, and return the summary."""
        (out / SUMMARY).unlink(missing_ok=True)  # it describes the verdicts that are about to be replaced
        config = self.config
        summary = judge_answers(self.pairs, config.url, key, config, self.seed, out / VERDICTS, on_row)
        settings = {"judge_url": config.url, "seed": self.seed, "template": read_template(config.template)}
        write_json(out / SUMMARY, summary | settings | {"inputs": self.inputs})
        return summary


def read_comparison(candidates: Path, references: Path, config: JudgeConfig, seed: int) -> Comparison:
    """Read two files of answers. Raises DataError like `pairs.read_pairs`."""
    pairs = read_pairs(candidates, references)
    inputs = {"candidates": _describe(candidates), "references": _describe(references)}
    return Comparison(pairs, inputs, config, seed)


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Format a summary as a few lines of text. A difference that is not significant is called so."""
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
    return [*lines, lengths, _position_line(summary)]


def _position_line(summary: dict[str, Any]) -> str:
    bias = summary["position_bias"]
    if bias is None:
        return "both responses of every pair are the same text: no request was needed"
    preference = (
        "no significant preference" if bias["p_value"] >= SIGNIFICANT else f"a preference, p = {bias['p_value']:.2g}"
    )
    flips = "" if summary["flip_rate"] is None else f"{summary['flip_rate']:.1%} of the pairs flipped with the order; "
    return f"{flips}the first position was chosen {bias['rate']:.1%} of the time ({preference})"


def _describe(file: Path) -> dict[str, str]:
    with file.open("rb") as handle:
        return {"file": str(file), "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}
