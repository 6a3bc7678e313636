"""The results file of a benchmark: ratios with their targets and baselines, from one run. No value makes a benchmark fail."""

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def ratio(values: Sequence[float], target: str, baseline: str, what: str) -> dict[str, Any]:
    """The median of paired ratios, their spread, and whether the median meets a target like `>= 5`. Values are rounded."""
    value = median(values)
    holds = meets(value, target)
    spread = [round(min(values), 3), round(max(values), 3)]
    return {
        "value": round(value, 3), "target": target, "holds": holds, "baseline": baseline, "what": what,
        "spread": spread, "pairs": len(values),
    }  # fmt: skip


def ratio_of_sums(pairs: Sequence[tuple[float, float]], target: str, baseline: str, what: str) -> dict[str, Any]:
    """The baseline's total seconds divided by ours, which is the gain over an epoch, with the paired ratios' median and spread.

    pairs: (ours, baseline) of each turn.
    """
    entry = ratio([theirs / ours for ours, theirs in pairs], target, baseline, what)
    ours, theirs = map(sum, zip(*pairs, strict=True))
    return entry | {"value": round(theirs / ours, 3), "holds": meets(theirs / ours, target), "median": entry["value"]}


def meets(value: float, target: str) -> bool:
    """Whether a value meets a target like `>= 5`."""
    side, bound = target.split()
    return value >= float(bound) if side == ">=" else value <= float(bound)


def not_measured(target: str, baseline: str, what: str, why: str) -> dict[str, Any]:
    """An entry for a ratio that could not be measured, with the reason."""
    return {"value": None, "target": target, "holds": None, "baseline": baseline, "what": what, "why": why}


def machine(*notes: str) -> str:
    return ", ".join([f"{os.cpu_count()}-core {platform.machine()} machine", f"torch {torch.__version__}", *notes])


def write_results(out: Path, command: str, where: str, ratios: dict[str, dict[str, Any]], **more: Any) -> None:
    """Write benchmarks/results/<name>.json, and print one line per ratio."""
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {"date": time.strftime("%F"), "machine": where, "command": command, "ratios": ratios, **more}
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for key, entry in ratios.items():
        sys.stdout.write(f"{key}: {line(entry)}\n")
    sys.stdout.write(f"{where}; {out}\n")


def line(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return f"not measured: {entry['why']}"
    verdict = "holds" if entry["holds"] else "DOES NOT HOLD"
    low, high = entry["spread"]
    middle = f"median {entry['median']}, " if "median" in entry else ""
    return (
        f"{entry['value']} (target {entry['target']}: {verdict}; {middle}{low} to {high}) {entry['what']}, "
        f"against {entry['baseline']}"
    )
