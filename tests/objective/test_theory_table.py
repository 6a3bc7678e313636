"""The table of optima in docs/theory.md, against the real losses, minimised over a small language."""

import re
from pathlib import Path

import pytest

from tests.objective.tabular import (
    DATA,
    GREEDY,
    REFERENCE,
    as_drawn,
    by_similarity,
    greedy,
    independent,
    kl,
    meanfield,
    normalised,
    optimal_policy,
    outcomes,
    tempered,
)

PAGE = Path(__file__).parents[2] / "docs" / "theory.md"
AN, COLD, HOT = REFERENCE, tempered(0.7), tempered(1.4)
RECIPES = {
    "2 autoregressive, temperature 1": (independent(AN, AN), {}),
    "2 autoregressive, temperature 0.7": (independent(COLD, COLD), {}),
    "2 autoregressive, temperature 1.4": (independent(HOT, HOT), {}),
    "1 greedy, 1 autoregressive": (outcomes(DATA, greedy, lambda gold: AN), {"masked": True}),
    "1 greedy, 1 at temperature 1.4": (outcomes(DATA, greedy, lambda gold: HOT), {"masked": True}),
    "1 meanfield": (outcomes(DATA, meanfield), {}),
    "2 meanfield": (outcomes(DATA, meanfield, meanfield), {}),
    "2 autoregressive, ranked by similarity": (independent(AN, AN), {"ranks": by_similarity, "masked": True}),
    "3 autoregressive, ranked by similarity": (independent(AN, AN, AN), {"ranks": by_similarity, "masked": True}),
    "2 autoregressive, ranks that say nothing": (independent(AN, AN), {"ranks": as_drawn}),
    "2 autoregressive, alpha 1": (independent(AN, AN), {"alpha": 1.0}),
}


def figures(policy):
    """The columns of the table: KL(data || policy), KL(policy || reference), entropy, probability of the greedy sequence."""
    entropy = -(policy * policy.log()).sum().item()
    return [abs(kl(DATA, policy)), abs(kl(policy, REFERENCE)), entropy, policy[GREEDY].item()]


def table_of_the_page():
    rows = re.findall(r"^\| ([^|]+) \| (\S+) \|((?: -?[\d.]+ \|){4})$", PAGE.read_text(), re.MULTILINE)
    return {(name, beta): [float(cell) for cell in cells.split("|")[:-1]] for name, beta, cells in rows}


def test_the_table_of_the_page_holds():
    expected = {("the reference", "-"): figures(REFERENCE), ("the data", "-"): figures(DATA)}
    for name, (groups, options) in RECIPES.items():
        policy, _ = optimal_policy(groups, 1.0, **options)
        expected[name, "1"] = figures(policy)
        if "alpha" in options:  # the weight of MLE beside the scores changes with beta
            policy, _ = optimal_policy(groups, 5.0, **options)
        else:
            policy = normalised(REFERENCE * (policy / REFERENCE) ** 0.2)
        expected[name, "5"] = figures(policy)
    stated = table_of_the_page()
    lines = [f"| {name} | {beta} | {' | '.join(f'{x:.3f}' for x in row)} |" for (name, beta), row in expected.items()]
    assert stated.keys() == expected.keys(), "the table should be:\n" + "\n".join(lines)
    for key, row in expected.items():
        assert stated[key] == pytest.approx(row, abs=0.0011), "the table should be:\n" + "\n".join(lines)
