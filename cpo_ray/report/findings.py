"""Results of runs: a row per model and decoding, and the differences to continued MLE."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from cpo_ray.evaluation.statistics import INVALID, SCORES, holm, paired_difference, win_rate_interval
from cpo_ray.evaluation.text_scores import TextScores
from cpo_ray.report.method import BASELINE, PLAIN
from cpo_ray.report.run_contents import RunContents, all_decodings, alpha_of

SIGNIFICANCE_LEVEL = 0.05


class DifferenceRow(TypedDict):
    """A model's win rate minus its baseline's, on the same prompts."""

    baseline: str  # label of the row that it is compared with: continued MLE
    value: float
    low: float
    high: float
    p: float
    p_adjusted: float  # Holm, over all models of the same decoding
    significant: bool  # p_adjusted < 0.05
    n: int
    excluded: int


class TableRow(TypedDict):
    """One model under one decoding. None marks what the run does not have."""

    run: str
    model: str
    label: str  # the model, with its run if the report has several runs
    method: str  # training method, by its name in the paper
    decoding: str
    alpha: float | None  # weight of MLE in the weight-space ensemble: cpo 0, mle 1
    judge: str | None
    win_rate: float | None
    low: float | None
    high: float | None
    wins: int
    ties: int
    losses: int
    invalid: int
    flip_rate: float | None  # share of valid verdicts whose two orders disagreed; None if only one order was asked
    length_controlled: dict[str, float] | None  # rate, low, high: at equal lengths, if the judging stage computed it
    position_bias: dict[str, float] | None  # rate, low, high: how often the judge prefers the first position
    difference_to_mle: DifferenceRow | None
    reward_rate: float | None  # how often a reward model prefers the answer to the ground truth, ties as half
    reward_low: float | None
    reward_high: float | None
    mauve: float | None
    mauve_deviation: float | None
    mean_length: float | None  # whitespace-separated words
    texts: TextScores | None
    is_baseline: bool  # other rows are compared with it


def find_results(runs: Sequence[RunContents]) -> list[TableRow]:
    """Return a row per decoding, run and model with answers, verdicts or scores, compared with MLE under the same decoding."""
    rows = []
    for decoding in all_decodings(runs):
        rows_of_decoding: list[tuple[RunContents, TableRow]] = []
        for run in runs:
            measured = [_measure(run, model, decoding, several=len(runs) > 1) for model in run.models]
            rows_of_decoding += [(run, row) for row in measured if _has_results(row)]
        _compare(rows_of_decoding)
        rows += [row for _, row in rows_of_decoding]
    return rows


def _has_results(row: TableRow) -> bool:
    return any(value is not None for value in (row["win_rate"], row["mauve"], row["mean_length"]))


def _measure(run: RunContents, model: str, decoding: str, *, several: bool) -> TableRow:
    verdicts = run.verdicts.get(model, {}).get(decoding, [])
    outcomes = [row["outcome"] for row in verdicts]
    valid = [outcome for outcome in outcomes if outcome != INVALID]
    rate, low, high = win_rate_interval(outcomes) if valid else (None, None, None)
    answers = [row["response"] for row in run.generations.get(model, {}).get(decoding, [])]
    mauve = run.mauve.get(model, {}).get(decoding, {})
    reward = run.reward.get(model, {}).get(decoding, {})
    reward_low, reward_high = reward.get("ci95") or (None, None)
    judging = run.judging(model, decoding)
    return TableRow(
        run=run.label,
        model=model,
        label=label_of(run, model, several=several),
        method=run.method(model),
        decoding=decoding,
        alpha=alpha_of(model),
        judge=judging.get("judge"),
        win_rate=rate,
        low=low,
        high=high,
        wins=outcomes.count("win"),
        ties=outcomes.count("tie"),
        losses=outcomes.count("loss"),
        invalid=outcomes.count(INVALID),
        flip_rate=_flip_rate(verdicts, judging),
        length_controlled=judging.get("length_controlled"),
        position_bias=judging.get("position_bias"),
        difference_to_mle=None,
        is_baseline=False,
        reward_rate=reward.get("win_rate"),
        reward_low=reward_low,
        reward_high=reward_high,
        mauve=mauve.get("mean"),
        mauve_deviation=mauve.get("deviation"),
        mean_length=mean_words(answers),
        texts=run.texts.get(model, {}).get(decoding),
    )


def _flip_rate(verdicts: Sequence[Mapping[str, Any]], judging: Mapping[str, Any]) -> float | None:
    valid = [row for row in verdicts if row["outcome"] != INVALID]
    if not valid or judging.get("order", "both") != "both":
        return None
    return sum(row["flipped"] for row in valid) / len(valid)


def label_of(run: RunContents, model: str, *, several: bool) -> str:
    """Return a model's name on the page."""
    return f"{run.label}: {model}" if several else model


def _compare(rows: Sequence[tuple[RunContents, TableRow]]) -> None:
    """Add each model's paired difference to its baseline, with Holm's correction over all rows. `rows` have one decoding."""
    judged = [(run, row) for run, row in rows if row["win_rate"] is not None]
    pairs = []
    for run, row in judged:
        baseline = _find_baseline(run, row, judged)
        if baseline is None:
            continue
        if baseline[1] is row:
            row["is_baseline"] = True
            continue
        ours, theirs = _outcomes(run, row), _outcomes(*baseline)
        if _share_valid(ours, theirs):
            found = paired_difference(ours, theirs, seed=int(run.config.get("seed", 0)))
            pairs.append((row, baseline[1]["label"], found))
    adjusted = holm([found.p_value for _, _, found in pairs])
    for (row, label, found), p_adjusted in zip(pairs, adjusted, strict=True):
        row["difference_to_mle"] = DifferenceRow(
            baseline=label,
            value=found.value,
            low=found.low,
            high=found.high,
            p=found.p_value,
            p_adjusted=p_adjusted,
            significant=p_adjusted < SIGNIFICANCE_LEVEL,
            n=found.n,
            excluded=found.excluded,
        )


def _find_baseline(
    run: RunContents, row: TableRow, judged: Sequence[tuple[RunContents, TableRow]]
) -> tuple[RunContents, TableRow] | None:
    """Find continued MLE of the same run; otherwise of another run with the same data, base model and judge; otherwise PSS
    of this run.

    Verdicts of different judges are never compared.
    """
    mine = [pair for pair in judged if pair[0] is run and pair[1]["model"] == BASELINE]
    theirs = [
        pair
        for pair in judged
        if pair[0] is not run and pair[1]["model"] == BASELINE and pair[0].setting == run.setting
    ]
    plain = [pair for pair in [*mine, *theirs] if pair[1]["method"] == PLAIN]
    return next((pair for pair in [*plain, *mine] if pair[1]["judge"] == row["judge"]), None)


def _share_valid(a: dict[str, str], b: dict[str, str]) -> bool:
    return any(a[key] in SCORES and b[key] in SCORES for key in a.keys() & b.keys())


def _outcomes(run: RunContents, row: TableRow) -> dict[str, str]:
    return {verdict["id"]: verdict["outcome"] for verdict in run.verdicts[row["model"]][row["decoding"]]}


def format_p(p: float) -> str:
    """Format a p-value with its relation: `p = 0.031` or `p < 0.001`."""
    text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def signed(value: float) -> str:
    """Format with one decimal and a sign, with a minus sign instead of a hyphen; 0.0 has no sign."""
    text = f"{value:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def mean_words(texts: Sequence[str]) -> float | None:
    """Return the mean length in whitespace-separated words, or None without texts."""
    return sum(len(text.split()) for text in texts) / len(texts) if texts else None
