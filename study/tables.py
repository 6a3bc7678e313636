"""The tables of docs/study.md, as Markdown."""

from collections.abc import Iterator, Mapping, Sequence

from study.decisions import Decision, TestResult, Values
from study.estimates import Mean, mean_over_seeds
from study.measurements import Results
from study.plan import Metric, Plan
from study.sequential import nominal_levels

BASELINE = "mle"
NONE = "-"


def verdict_table(plan: Plan, decisions: Mapping[str, Decision]) -> str:
    """A row per hypothesis, in the order of registration, all alike whatever they say."""
    rows = [
        [
            name,
            item.hypothesis.claim,
            item.hypothesis.paper or NONE,
            f"**{item.verdict}**",
            f"{item.reason}; {_look(plan, item)}",
        ]
        for name, item in decisions.items()
    ]
    return table(["", "claim", "in the paper", "verdict", "why"], rows)


def test_table(plan: Plan, decisions: Mapping[str, Decision]) -> str:
    """A row per test: estimand, estimate and interval of the look's level, p-values and the level to reach."""
    rows = []
    for name, item in decisions.items():
        for result in item.results:
            metric = plan.metrics[result.test.metric]
            margin = f" {_signed(result.test.margin, metric)}" if result.test.margin else " 0"
            standing = item.standing
            level = (standing.rejection or standing).level if standing else None
            rows.append(
                [
                    name,
                    f"{metric.label}: {result.test.estimand}",
                    f"{'<' if result.test.direction == 'less' else '>'}{margin}",
                    _signed(result.estimate.value, metric),
                    _interval(result.estimate, metric, signed=True),
                    str(result.estimate.n),
                    _p(_p_of(result)),
                    NONE if level is None else _p(level),
                ]
            )
    if not rows:
        return "No hypothesis has the values of two seeds yet.\n"
    return table(["", "estimand", "claimed", "estimate", "interval", "seeds", "p", "p must reach"], rows)


def metric_table(name: str, plan: Plan, results: Results, values: Values) -> str:
    """One metric: a row per arm and model, its value over seeds, and its paired difference to continued MLE with t."""
    metric, rows = plan.metrics[name], []
    for term, seeds in values.get(name, {}).items():
        arm, _, model = term.partition("/")
        mean = mean_over_seeds([seeds[seed] for seed in plan.seeds if seed in seeds])
        row = [
            arm,
            model,
            f"{mean.value:.{metric.decimals}f}",
            _interval(mean, metric),
            f"{mean.deviation:.{metric.decimals}f}",
        ]
        rows.append([*row, str(mean.n), *_against_baseline(metric, plan, values[name], term)])
    if not rows:
        return "No run has this metric yet.\n"
    fingerprints = {arm: record["fingerprint"] for arm, record in results["arms"].items()}
    rows = [[*row, f"`{fingerprints.get(row[0], '')}`"] for row in rows]
    heads = [
        "arm",
        "model",
        "value",
        "95% interval",
        "SD",
        "seeds",
        "minus MLE",
        "95% interval",
        "t",
        "configuration",
    ]
    return table(heads, rows)


def arm_table(plan: Plan, results: Results) -> str:
    """A row per arm: what it is, what it changes, its configuration's fingerprint and the command that runs it."""
    rows = []
    for arm, record in results["arms"].items():
        settings = ", ".join(f"`{key}: {_short(value)}`" for key, value in record["settings"].items())
        done = sum(run["arm"] == arm and run["status"] == "done" for run in results["runs"])
        progress = f"{done} of {len(plan.seeds)}"
        rows.append(
            [
                arm,
                record["about"],
                settings or NONE,
                f"`{record['fingerprint']}`",
                progress,
                f"`{record['command']}`",
            ]
        )
    return table(["arm", "what it is", "changes in the base", "configuration", "runs", "command"], rows)


def looks_sentence(plan: Plan) -> str:
    """The looks, with the levels of a single hypothesis and those under Holm's strictest step."""
    single = nominal_levels(plan.alpha, plan.information)
    strict = nominal_levels(plan.alpha / len(plan.hypotheses), plan.information)
    looks = " and ".join(f"{seeds}" for seeds in plan.looks)
    parts = [
        f"{_p(one)} at {seeds} seeds for a single hypothesis, {_p(first)} for the first of {len(plan.hypotheses)} by Holm"
        for seeds, one, first in zip(plan.looks, single, strict, strict=True)
    ]
    return f"Looks at {looks} of {len(plan.seeds)} seeds. The p-value must reach {'; '.join(parts)}."


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def _against_baseline(metric: Metric, plan: Plan, terms: Mapping[str, Mapping[int, float]], term: str) -> Iterator[str]:
    """The paired difference to the MLE model of the same run: its mean, interval and t."""
    baseline = f"{term.partition('/')[0]}/{BASELINE}"
    ours, theirs = terms[term], terms.get(baseline, {})
    differences = [ours[seed] - theirs[seed] for seed in plan.seeds if seed in ours and seed in theirs]
    if term == baseline or not differences:
        yield from [NONE] * 3
        return
    mean = mean_over_seeds(differences)
    yield _signed(mean.value, metric)
    yield _interval(mean, metric, signed=True)
    yield NONE if mean.t is None else f"{mean.t:.1f}"


def _look(plan: Plan, item: Decision) -> str:
    return f"look {item.standing.look} of {len(plan.looks)}, {item.seeds} seeds" if item.standing else "no look yet"


def _p_of(result: TestResult) -> float:
    return min(result.p_holds, result.p_reverse)


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-3 else f"{value:.1e}"


def _signed(value: float, metric: Metric) -> str:
    return f"{value:+.{metric.decimals}f}"


def _interval(mean: Mean, metric: Metric, *, signed: bool = False) -> str:
    if mean.low is None or mean.high is None:
        return NONE
    low, high = (f"{end:{'+' if signed else ''}.{metric.decimals}f}" for end in (mean.low, mean.high))
    return f"[{low}, {high}]"


def _short(value: object) -> str:
    return str(value).replace("'", "")
