"""Iterated CPO in the report: which artifacts are of a round, the curve of all rounds, and the table of rounds."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypedDict

from cpo_ray.report.markup import Cell, format_number, grid

OF_A_ROUND = re.compile(r"(?:models/cpo|groups/train)-(\d+)$")
CURVE_OF_A_ROUND = re.compile(r"cpo-(\d+)$")

Manifests = Mapping[str, Mapping[str, Any]]  # artifact -> manifest
Rows = list[dict[str, Any]]


class RoundsFound(TypedDict):
    """The rounds that were taken, as the final policy's manifest has them."""

    kept: int  # rounds that lead to the policy
    reason: str | None  # why no more were taken, if the stop rule applied
    reference_nll: float | None  # of the gold on the validation split under the first reference, nat per token
    rounds: list[dict[str, Any]]  # RoundFigures of `cpo_ray.stages.round_figures`, and whether the round is `kept`


def rounds_of(manifests: Manifests) -> RoundsFound | None:
    """Return the rounds of a run, or None if its CPO was not iterated or is not finished."""
    summary = manifests.get("models/cpo", {}).get("summary") or {}
    if "rounds" not in summary:
        return None
    return RoundsFound(
        kept=summary["kept"],
        reason=summary["stopped"],
        reference_nll=summary["reference_nll"],
        rounds=summary["rounds"],
    )


def round_of(artifact: str) -> int | None:
    """Return the number of the round that an artifact belongs to; None for others, and for the first round's groups."""
    found = OF_A_ROUND.match(artifact)
    return int(found[1]) if found else None


def count_rounds(config: Mapping[str, Any], manifests: Manifests) -> int | None:
    """Return how many rounds a run has taken: those configured if it is not finished, 0 for CPO that is not iterated.

    None if there is no configuration.
    """
    if not config:
        return None
    if config.get("rounds", 1) == 1:
        return 0
    found = rounds_of(manifests)
    return len(found["rounds"]) if found else int(config["rounds"])


def join_rounds(
    curves: Mapping[str, tuple[Rows, Rows]], config: Mapping[str, Any], manifests: Manifests
) -> dict[str, tuple[Rows, Rows]]:
    """Return the curves with those of the kept rounds, one after the other, as the curve `cpo`.

    Curves: (training, validation) by stage; those of rounds are `cpo-1`, `cpo-2`, ... Curves of another configuration's rounds
    are left out.
    """
    taken = count_rounds(config, manifests)
    if taken is None:
        return dict(curves)
    numbers = {name: int(found[1]) for name in curves if (found := CURVE_OF_A_ROUND.match(name))}
    current = {name: rows for name, rows in curves.items() if numbers.get(name, 0) <= taken}
    if not taken:
        return current
    current.pop("cpo", None)  # of a configuration without rounds
    found_rounds = rounds_of(manifests)
    kept = found_rounds["kept"] if found_rounds else taken
    train: Rows = []
    validation: Rows = []
    for number in range(1, kept + 1):
        done = train[-1]["step"] if train else 0
        for joined, rows in zip((train, validation), current.get(f"cpo-{number}", ([], [])), strict=True):
            joined += [{**row, "step": done + row["step"], "round": number} for row in rows]
    return current | ({"cpo": (train, validation)} if train else {})


HEADS = ["round", "steps", "loss", "accuracy", "gold, against its reference", "gold, against the first"]
HEADS += ["validation loss", "gold's NLL", "against the first", ""]
COLUMNS = (
    ("steps", ",.0f"), ("loss", ".4f"), ("accuracy", ".3f"), ("gold_drift", "+.3f"), ("first_drift", "+.3f"),
    ("validation_loss", ".4f"), ("nll", ".4f"), ("nll_increase", "+.4f"),
)  # fmt: skip
NOTE = """<p class="note">In every round the policy before it is the reference: negatives are sampled from it and scored under
it, and training starts at it. Loss, accuracy and the gold's change of log-prob (nats per response) are of the round's last
step. On the validation split: the loss, with negatives and scores of the first reference in every round, and the gold's
negative log-likelihood (NLL, nat per token).</p>"""


def render_rounds(runs: Sequence[Mapping[str, Any]]) -> str:
    """Render the rounds of each run with iterated CPO as a table; an empty string if there are none."""
    tables = []
    for run in runs:
        found = run["rounds"]
        if found is not None:
            of = f" of {run['label']}" if len(runs) > 1 else ""
            tables.append(grid(HEADS, _rows(found), f"Rounds of CPO{of}"))
            tables.append(f"<p>{escape(found['reason'])}.</p>" if found["reason"] else "")
    return "".join(tables) + (NOTE if tables else "")


def _rows(found: Mapping[str, Any]) -> list[list[Cell]]:
    nll = {"nll": found["reference_nll"]}
    first: list[Cell] = ["0", *(format_number(nll.get(key), form) for key, form in COLUMNS), "first reference"]
    rows = [first]
    for each in found["rounds"]:
        numbers = [format_number(each[key], form) for key, form in COLUMNS]
        rows.append([str(each["round"]), *numbers, "kept" if each["kept"] else "discarded"])
    return rows
