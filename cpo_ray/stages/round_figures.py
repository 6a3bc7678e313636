"""What each round of iterated CPO did to the gold, and whether another one follows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from rich.table import Table

from cpo_ray.artifacts import STATS

DASH = "-"


@dataclass(frozen=True)
class GoldLikelihood:
    """The gold under a reference, as the groups that it scored record it."""

    train_logp: float  # nats per response, mean over the training rows
    nll: float | None = None  # nat per token on the validation split; None without one


class RoundFigures(TypedDict):
    """One round in numbers. None: not measured."""

    round: int
    steps: int
    loss: float | None  # of the last step, as are the next three
    accuracy: float | None
    gold_drift: float | None  # the gold's log-prob minus that under the round's reference, nats per response
    first_drift: float | None  # the same against the first reference
    validation_loss: float | None  # on the groups of the first reference, as in every round
    nll: float | None  # of the gold on the validation split, nat per token
    nll_increase: float | None  # over that under the first reference


def measure_gold(train: Path, validation: Path | None = None) -> GoldLikelihood:
    """Read the gold's likelihood under the reference from the `stats.json` of its groups (folders)."""
    logp = _gold_stats(train)["mean_ref_logp"]
    if validation is None:
        return GoldLikelihood(logp)
    gold = _gold_stats(validation)
    return GoldLikelihood(logp, -gold["mean_ref_logp"] * gold["count"] / gold["tokens"])


def measure_round(number: int, trained: Mapping[str, Any], first: GoldLikelihood, shift: float) -> RoundFigures:
    """The figures of round `number`.

    trained: the summary of its training. first: the gold under the first reference. shift: the gold's mean log-prob under the
    round's reference minus that under the first, nats per response.
    """
    drift, nll = trained.get("gold_drift"), trained.get("validation_nll")
    return RoundFigures(
        round=number,
        steps=trained["steps"],
        loss=trained.get("loss"),
        accuracy=trained.get("accuracy"),
        gold_drift=drift,
        first_drift=None if drift is None else drift + shift,
        validation_loss=trained.get("validation_loss"),
        nll=nll,
        nll_increase=None if nll is None or first.nll is None else nll - first.nll,
    )


def stop_reason(figures: Sequence[RoundFigures], rounds: int, limit: float | None) -> str | None:
    """Why no round follows the last of `figures`, and which policy is the result; None if the rule does not apply.

    rounds: as configured. limit: `rounds_stop.max_nll_increase`.
    """
    number, increase = figures[-1]["round"], figures[-1]["nll_increase"]
    if limit is None or increase is None or increase <= limit:
        return None
    result = f"it is discarded, and the policy of round {number - 1} is the result"
    if number == 1:
        result = "its policy is the result all the same, as there is none before it"
    left = range(number + 1, rounds + 1)
    skipped = f"; skipped: round {', '.join(map(str, left))}" if left else ""
    return (
        f"round {number} raised the gold's negative log-likelihood on the validation split by {increase:.3f} nat per token "
        f"over the first reference, more than rounds_stop.max_nll_increase {limit:g}: {result}{skipped}"
    )


def describe_round(figures: RoundFigures) -> str:
    """A round in a line."""
    of_gold = f"gold {_signed(figures['gold_drift'])} nat per response against its reference"
    of_gold += f", {_signed(figures['first_drift'])} against the first"
    line = (
        f"round {figures['round']}: loss {_number(figures['loss'])}, accuracy {_number(figures['accuracy'])}, {of_gold}"
    )
    if figures["nll"] is None:
        return line
    increase = _signed(figures["nll_increase"])
    return (
        f"{line}; validation: {figures['nll']:.4f} nat per token of the gold ({increase} against the first reference)"
    )


def round_table(rounds: Sequence[Mapping[str, Any]], reference_nll: float | None) -> Table:
    """The rounds as a table for the terminal, the first reference as round 0. rounds: RoundFigures with `kept`.

    drift: of the gold's log-prob from the round's reference, and from the first one.
    """
    table = Table(title="rounds of CPO", box=None, padding=(0, 1, 0, 0), title_justify="left")  # 80 columns
    heads = ("round", "steps", "loss", "accuracy", "drift", "from first", "val. loss", "gold NLL", "")
    for head in heads:
        table.add_column(head, justify="right")
    table.add_row("0", *[DASH] * 6, _number(reference_nll), "reference")
    for each in rounds:
        table.add_row(
            str(each["round"]),
            str(each["steps"]),
            _number(each["loss"]),
            _number(each["accuracy"]),
            _signed(each["gold_drift"]),
            _signed(each["first_drift"]),
            _number(each["validation_loss"]),
            _number(each["nll"]),
            "kept" if each["kept"] else "discarded",
        )
    return table


def _gold_stats(groups: Path) -> dict[str, Any]:
    gold: dict[str, Any] = json.loads((groups / STATS).read_text(encoding="utf-8"))["gold"]
    return gold


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return DASH if value is None else f"{value:+.3f}"
