"""Verdicts on the hypotheses: holds, does not, or cannot be told at this size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from study.estimates import Mean, mean_over_seeds, one_sided_p
from study.plan import Hypothesis, Plan, Test
from study.sequential import Standing, holm_over_looks, nominal_levels

Values = Mapping[str, Mapping[str, Mapping[int, float]]]  # metric -> arm/model -> seed -> value
Verdict = Literal["holds", "does not", "cannot be told at this size", "not tested yet"]
OPPOSITE: Mapping[str, Literal["less", "greater"]] = {"less": "greater", "greater": "less"}


@dataclass(frozen=True)
class TestResult:
    """One test at one look. estimate: of the contrast, with an interval of the look's level."""

    test: Test
    estimate: Mean
    p_holds: float  # two-sided: twice the one-sided p-value
    p_reverse: float  # the same in the opposite direction


@dataclass(frozen=True)
class Decision:
    """What the data say of one hypothesis."""

    name: str
    hypothesis: Hypothesis
    verdict: Verdict
    reason: str
    results: tuple[TestResult, ...]  # at the last look; before the first look, of the seeds so far
    standing: Standing | None
    seeds: int  # that the results are made of


def decide(plan: Plan, values: Values) -> dict[str, Decision]:
    """Test every hypothesis at every look that its seeds have reached, in the order of registration.

    A look counts only the first `looks[k]` registered seeds, also if more are finished. A hypothesis for which one of these
    seeds is missing is not tested at that look.
    """
    levels = nominal_levels(plan.alpha, plan.information)
    tested: list[dict[str, tuple[TestResult, ...]]] = []
    for seeds, level in zip(plan.looks, levels, strict=True):
        found = {name: measure(item, values, plan.seeds[:seeds], level) for name, item in plan.hypotheses.items()}
        tested.append({name: results for name, results in found.items() if results})
    while tested and not tested[-1]:
        tested.pop()
    p_values = [{name: p_value(results) for name, results in look.items()} for look in tested]
    standings = holm_over_looks(plan.hypotheses, p_values, plan.alpha, plan.information)
    return {name: _decide_one(plan, name, tested, standings.get(name), values) for name in plan.hypotheses}


def measure(
    hypothesis: Hypothesis, values: Values, seeds: Sequence[int], level: float, *, complete: bool = True
) -> tuple[TestResult, ...]:
    """The tests of a hypothesis on these seeds; nothing if a value is missing.

    level: of the two-sided interval that is shown, 1 - confidence. complete: if false, the seeds that have values are enough,
    at least two.
    """
    results = []
    for test in hypothesis.tests:
        contrast = contrasts(test, values, seeds)
        if len(contrast) < (len(seeds) if complete else 2):
            return ()
        holds, reverse = (
            min(1.0, 2 * one_sided_p(contrast, direction, test.margin))
            for direction in (test.direction, OPPOSITE[test.direction])
        )
        results.append(TestResult(test, mean_over_seeds(contrast, 1 - level), holds, reverse))
    return tuple(results)


def contrasts(test: Test, values: Values, seeds: Sequence[int]) -> list[float]:
    """The contrast of each seed that has all its values: paired within the seed."""
    by_term = {term: values.get(test.metric, {}).get(term, {}) for term in test.contrast}
    return [
        sum(weight * by_term[term][seed] for term, weight in test.contrast.items())
        for seed in seeds
        if all(seed in by_term[term] for term in test.contrast)
    ]


def p_value(results: Sequence[TestResult]) -> float:
    """The two-sided p-value of a hypothesis: of all its tests holding, or of one being reversed, whichever is smaller.

    All must hold, so the largest p-value counts; any may be reversed, so the smallest counts, times the number of tests.
    """
    return min(_p_holds(results), _p_reverse(results))


def _p_holds(results: Sequence[TestResult]) -> float:
    return max(result.p_holds for result in results)


def _p_reverse(results: Sequence[TestResult]) -> float:
    return min(1.0, len(results) * min(result.p_reverse for result in results))


def _decide_one(
    plan: Plan,
    name: str,
    tested: Sequence[Mapping[str, tuple[TestResult, ...]]],
    standing: Standing | None,
    values: Values,
) -> Decision:
    hypothesis = plan.hypotheses[name]
    if standing is None:
        so_far = measure(hypothesis, values, plan.seeds, plan.alpha, complete=False)
        seeds = min((result.estimate.n for result in so_far), default=0)
        reason = f"{seeds} of {plan.looks[0]} seeds that the first look needs"
        return Decision(name, hypothesis, "not tested yet", reason, so_far, None, seeds)
    results, seeds = tested[standing.look - 1][name], plan.looks[standing.look - 1]
    verdict, reason = _judge(hypothesis, results, standing)
    return Decision(name, hypothesis, verdict, reason, results, standing, seeds)


def _judge(hypothesis: Hypothesis, results: Sequence[TestResult], standing: Standing) -> tuple[Verdict, str]:
    if standing.rejection is not None:
        if _p_holds(results) <= _p_reverse(results):
            return "holds", "the bound is crossed"
        return "does not", "the bound is crossed in the opposite direction"
    small = hypothesis.negligible
    if small is not None and any(_is_within(result.estimate, small) for result in results):
        return "does not", f"the interval is within \N{PLUS-MINUS SIGN}{small:g}, which was registered as negligible"
    return "cannot be told at this size", "the bound is not crossed"


def _is_within(estimate: Mean, small: float) -> bool:
    return estimate.low is not None and estimate.high is not None and -small < estimate.low and estimate.high < small
