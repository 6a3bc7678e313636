"""The sentences of the first screen: what changed against continued MLE, by how much, how sure that is, and what it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from cpo_ray.report.findings import TableRow, format_p, signed
from cpo_ray.report.method import BASELINE, PLAIN
from cpo_ray.report.run_contents import RunContents
from cpo_ray.report.study_quote import study_sentence
from cpo_ray.report.text_tables import measured_rows


def headline_sentences(runs: Sequence[RunContents], table: Sequence[TableRow], decoding: str | None) -> list[str]:
    """The sentences, the most important one first.

    Win rates lead, unless every answer of every model lost: then they rank nothing, and the texts lead.
    """
    texts = text_sentence(table, decoding)
    evidence = [texts, *map(study_sentence, runs[:1]), *map(cost_sentence, runs[:1])] if texts else []
    if texts and all_lost(table, decoding):
        rates = "The judge preferred the ground truth to every answer of every model, so win rates (0.0%) rank nothing."
        return [sentence for sentence in (*evidence, rates) if sentence]
    return [sentence for sentence in (judged_sentence(table, decoding), *evidence) if sentence]


def all_lost(table: Sequence[TableRow], decoding: str | None) -> bool:
    """Whether answers were judged under this decoding, and none won or tied."""
    judged = [row for row in table if row["decoding"] == decoding and row["win_rate"] is not None]
    return bool(judged) and all(row["wins"] == row["ties"] == 0 for row in judged)


def text_sentence(table: Sequence[Mapping[str, Any]], decoding: str | None) -> str | None:
    """Say how much the CPO model repeats itself beside continued MLE and the truth; None if that was not measured.

    Always the model `cpo` of the first run and always rep-4, so that nothing is picked.
    """
    rows = [row for row in measured_rows(table, decoding) if row["model"] == "cpo"]
    if not rows:
        return None
    score = rows[0]["texts"]["metrics"]["rep_4"]
    ours, truth, difference = score["answers"], score["truth"], score["to_baseline"]
    if difference is None or difference["low"] is None or truth["value"] is None:
        return None
    change, low, high = (signed(100 * difference[key]) for key in ("value", "low", "high"))
    word = "less" if difference["value"] < 0 else "more"
    clear = difference["high"] < 0 or difference["low"] > 0
    lead = f"repeats itself {word} than continued MLE" if clear else "repeats itself about as much as continued MLE"
    return (
        f"{rows[0]['label']} {lead}: {ours['value']:.1%} of the 4-grams in an answer repeat earlier ones, after MLE "
        f"{ours['value'] - difference['value']:.1%}, in the truth {truth['value']:.1%}. On the same {difference['n']} prompts "
        f"the difference is {change} points (95% interval {low} to {high}, over prompts alone)."
    )


def cost_sentence(run: RunContents) -> str | None:
    """Say what CPO cost beside continued MLE: likelihood of the truth, and seconds of sampling and training."""
    ours, theirs = (run.manifests.get(f"models/{model}", {}) for model in ("cpo", BASELINE))
    likelihoods = [manifest.get("summary", {}).get("validation_nll") for manifest in (ours, theirs)]
    if None in likelihoods:
        return None
    change = likelihoods[0] - likelihoods[1]
    cost = (
        f"What it cost: the truth's negative log-likelihood on validation prompts is {likelihoods[0]:.3f} nat per token, after "
        f"MLE {likelihoods[1]:.3f} ({change:+.3f})".replace("-0.", "\N{MINUS SIGN}0.")
    )
    seconds = _seconds(run, "groups/", "models/cpo")
    baseline = _seconds(run, "models/mle")
    times = f"; negatives and training took {seconds:.0f} s, MLE {baseline:.0f} s" if seconds and baseline else ""
    return f"{cost}{times}."


def _seconds(run: RunContents, *prefixes: str) -> float:
    return sum(manifest.get("seconds") or 0 for name, manifest in run.manifests.items() if name.startswith(prefixes))


def judged_sentence(table: Sequence[TableRow], decoding: str | None) -> str:
    """Compare the win rate of the best model trained with CPO to that of continued MLE."""
    judged = [row for row in table if row["decoding"] == decoding and row["win_rate"] is not None]
    by_label = {row["label"]: row for row in judged}
    compared = [row for row in judged if row["difference_to_mle"]]
    trained = [row for row in compared if row["model"] not in ("reference", BASELINE)]
    ours = [row for row in trained if row["method"] != "DPO"] or trained
    if not judged:
        return "No answers have been judged yet, so there is no result to report."
    best = max(ours, key=lambda row: row["win_rate"] or 0.0, default=None)
    difference = best["difference_to_mle"] if best else None
    if best is None or difference is None:
        has_mle = any(row["model"] == BASELINE for row in judged)
        lacking = "no model trained with CPO" if has_mle else "no continued-MLE model"
        return f"Nothing can be compared yet: {lacking} has been judged."
    among = f" (the best of {len(ours)} models trained with CPO)" if len(ours) > 1 else ""
    low, high = (signed(100 * difference[end]) for end in ("low", "high"))
    verdict = "This is significant" if difference["significant"] else "This is not a significant difference"
    p = format_p(difference["p_adjusted"])
    alone = format_p(difference["p"])
    corrected = f", corrected for {len(compared)} comparisons; {alone} alone" if len(compared) > 1 else ""
    baseline = by_label[difference["baseline"]]
    other = "continued MLE" if baseline["method"] == PLAIN else f"the baseline, {baseline['method']},"
    other += "" if baseline["label"] == BASELINE else f" ({baseline['label']})"
    return (
        f"{best['label']}{among} has a win rate of {best['win_rate']:.1%} against the ground truth; {other} has "
        f"{baseline['win_rate']:.1%}. On the same {difference['n']} prompts the difference is "
        f"{signed(100 * difference['value'])} points (95% interval {low} to {high}). {verdict} ({p}{corrected})."
    )
