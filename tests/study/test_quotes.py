import json

import pytest

from study.page import by_seed
from study.quotes import quotes_of, write_quotes
from tests.study.fake_plan import make_plan
from tests.study.test_page import make_results


def test_a_quote_is_the_difference_over_seeds_with_students_interval(tmp_path):
    values = {"rep_4_gap": {"greedy/cpo": {1: 0.1, 2: 0.2}, "greedy/mle": {1: 0.3, 2: 0.5}, "paper/cpo": {1: 0.3}}}
    results = make_results(make_plan(), values)
    quotes = quotes_of(results, by_seed(results))
    # differences -.2 and -.3: mean -.25, SD .0707, t(.975, 1) = 12.706, so +- .6353
    assert quotes == {
        "greedy-recipe": {
            "arm": "greedy", "date": "2026-12-01", "seeds": 2, "value": pytest.approx(-0.25),
            "low": pytest.approx(-0.8853, abs=1e-4), "high": pytest.approx(0.3853, abs=1e-4),
        }
    }  # fmt: skip
    write_quotes(quotes, tmp_path)
    assert json.loads((tmp_path / "study.json").read_text()) == quotes
