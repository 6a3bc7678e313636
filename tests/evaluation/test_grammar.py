import sys

import pytest

from cpo_ray.errors import ConfigError
from cpo_ray.evaluation.grammar import check_grammar_extra, lint_rates


def test_lints_are_counted_per_hundred_words():
    pytest.importorskip("harper", reason="the extra cpo-ray[grammar] is not installed")
    wrong, right = "This is an test of the the linter.", "This is a test of the linter."
    assert lint_rates([wrong, "", right, " \n", wrong]) == [
        pytest.approx(200 / 8),
        None,
        0.0,
        None,
        pytest.approx(200 / 8),
    ]


def test_a_missing_extra_is_reported_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "harper", None)
    with pytest.raises(ConfigError, match=r"cpo-ray\[grammar\]"):
        check_grammar_extra()
    with pytest.raises(ConfigError, match=r"text_metrics\.grammar to false"):
        lint_rates(["text"])
