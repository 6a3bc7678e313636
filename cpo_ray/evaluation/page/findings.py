"""What a run found: a row per model and decoding, every difference to continued MLE, and the sentence that says it."""

from collections.abc import Sequence
from typing import TypedDict

from cpo_ray.evaluation.page.run import Run, alpha_of
from cpo_ray.evaluation.statistics import INVALID, SCORES, holm, paired_difference, win_rate_interval

LEVEL = 0.05
BASELINE = "mle"


class DifferenceRow(TypedDict):
    """A model's win rate minus continued MLE's, on the same prompts."""

    value: float
    low: float
    high: float
    p: float
    p_adjusted: float  # Holm, over the models of the same decoding
    significant: bool  # p_adjusted < 0.05
    n: int
    excluded: int


class TableRow(TypedDict):
    """One model under one decoding. None is what the run does not hold."""

    model: str
    decoding: str
    alpha: float | None  # in the weight-space ensemble: cpo 0, mle 1
    win_rate: float | None
    low: float | None
    high: float | None
    wins: int
    ties: int
    losses: int
    invalid: int
    flip_rate: float | None  # share of prompts whose two orders disagreed
    difference_to_mle: DifferenceRow | None
    mauve: float | None
    mauve_deviation: float | None
    mean_length: float | None  # whitespace-separated words


def find_results(run: Run) -> list[TableRow]:
    """A row per decoding and model that has answers, verdicts or scores, compared with MLE under the same decoding."""
    rows = []
    for decoding in run.decodings:
        measured = [_measure(run, model, decoding) for model in run.models]
        known = [row for row in measured if any(row[key] is not None for key in ("win_rate", "mauve", "mean_length"))]
        _compare(run, decoding, known)
        rows += known
    return rows


def _measure(run: Run, model: str, decoding: str) -> TableRow:
    verdicts = run.verdicts.get(model, {}).get(decoding, [])
    outcomes = [row["outcome"] for row in verdicts]
    valid = [outcome for outcome in outcomes if outcome != INVALID]
    rate, low, high = win_rate_interval(outcomes) if valid else (None, None, None)
    answers = [row["response"] for row in run.generations.get(model, {}).get(decoding, [])]
    mauve = run.mauve.get(model, {}).get(decoding, {})
    return TableRow(
        model=model,
        decoding=decoding,
        alpha=alpha_of(model),
        win_rate=rate,
        low=low,
        high=high,
        wins=outcomes.count("win"),
        ties=outcomes.count("tie"),
        losses=outcomes.count("loss"),
        invalid=outcomes.count(INVALID),
        flip_rate=sum(row["flipped"] for row in verdicts) / len(verdicts) if verdicts else None,
        difference_to_mle=None,
        mauve=mauve.get("mean"),
        mauve_deviation=mauve.get("deviation"),
        mean_length=mean_words(answers),
    )


def _compare(run: Run, decoding: str, rows: Sequence[TableRow]) -> None:
    """Add each model's paired difference to MLE; Holm over the models of this decoding."""
    judged = {row["model"]: row for row in rows if row["win_rate"] is not None}
    if BASELINE not in judged:
        return
    compared = [row for model, row in judged.items() if model != BASELINE]
    seed = int(run.config.get("seed", 0))
    baseline = _outcomes(run, BASELINE, decoding)
    compared = [row for row in compared if _share_valid(baseline, _outcomes(run, row["model"], decoding))]
    found = [paired_difference(_outcomes(run, row["model"], decoding), baseline, seed) for row in compared]
    for row, item, adjusted in zip(compared, found, holm([item.p_value for item in found]), strict=True):
        row["difference_to_mle"] = DifferenceRow(
            value=item.value,
            low=item.low,
            high=item.high,
            p=item.p_value,
            p_adjusted=adjusted,
            significant=adjusted < LEVEL,
            n=item.n,
            excluded=item.excluded,
        )


def _share_valid(a: dict[str, str], b: dict[str, str]) -> bool:
    return any(a[key] in SCORES and b[key] in SCORES for key in a.keys() & b.keys())


def _outcomes(run: Run, model: str, decoding: str) -> dict[str, str]:
    return {row["id"]: row["outcome"] for row in run.verdicts[model][decoding]}


def tell_headline(table: Sequence[TableRow], decoding: str | None) -> str:
    """Plain sentences: the best model of the CPO side against continued MLE."""
    judged = [row for row in table if row["decoding"] == decoding and row["win_rate"] is not None]
    mle = next((row for row in judged if row["model"] == BASELINE), None)
    ours = [row for row in judged if row["difference_to_mle"] and row["model"] != "reference"]
    if not judged:
        return "No answers have been judged yet, so there is no result to report."
    if mle is None or not ours:
        lacking = "no model trained with CPO" if mle else "no continued-MLE model"
        return f"Nothing can be compared yet: {lacking} has been judged."
    best = max(ours, key=lambda row: row["win_rate"] or 0.0)
    difference = best["difference_to_mle"]
    if difference is None or best["win_rate"] is None or mle["win_rate"] is None:
        return "Nothing can be compared yet."
    count = sum(row["difference_to_mle"] is not None for row in judged)
    among = f" (the best of {len(ours)} models trained with CPO)" if len(ours) > 1 else ""
    low, high = (signed(100 * end) for end in (difference["low"], difference["high"]))
    verdict = "This is significant" if difference["significant"] else "This is not a significant difference"
    p = told_p(difference["p_adjusted"])
    corrected = f", corrected for {count} comparisons; {told_p(difference['p'])} alone" if count > 1 else ""
    return (
        f"{best['model']}{among} has a win rate of {best['win_rate']:.1%} against the ground truth; continued MLE has "
        f"{mle['win_rate']:.1%}. On the same {difference['n']} prompts the difference is {signed(100 * difference['value'])} "
        f"points (95% interval {low} to {high}). {verdict} ({p}{corrected})."
    )


def told_p(p: float) -> str:
    """A p-value as people write it, with its relation."""
    text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def signed(value: float) -> str:
    """One decimal, with a sign that is not a hyphen."""
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def mean_words(texts: Sequence[str]) -> float | None:
    """Mean length in whitespace-separated words."""
    return sum(len(text.split()) for text in texts) / len(texts) if texts else None
