import pytest

from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ConfigError

VALIDATED = {"data": {"validation_rows": 8}, "training": {"validation_rows": 8, "steps": 10}}


def parse(**tree):
    return parse_config({"name": "x", **tree}, "x.yaml")


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"rounds": 0}, "rounds: Input should be greater than or equal to 1, got 0"),
        ({"rounds": 1.5}, "rounds: Input should be a valid integer"),
        ({"rounds": 2}, "rounds 2 needs training.validation_rows: after each round"),
        ({"rounds": 2}, "rounds_stop.max_nll_increase: null goes on without this rule"),
        ({"rounds": 2, "sampling": {"stream": True}} | VALIDATED, "cannot be combined with sampling.stream"),
        ({"rounds": 2, "tuning": {"learning_rates": [1e-5, 1e-4]}} | VALIDATED, "find the rates with rounds: 1"),
        ({"rounds": 2, "rounds_stop": {"max_nll_increase": 0}} | VALIDATED, "rounds_stop.max_nll_increase: Input should be"),
        ({"sampling": {"stream": True, "refresh_reference": True}}, "refresh_reference needs refresh_steps"),
        ({"sampling": {"refresh_reference": True, "refresh_steps": 5}}, "refresh_steps needs stream: true"),
        ({"round": 2}, "did you mean `rounds`?"),
    ],
)  # fmt: skip
def test_errors_name_the_key_and_the_remedy(tree, words):
    with pytest.raises(ConfigError) as caught:
        parse(**tree)
    assert words in str(caught.value)


def test_a_stop_rule_needs_a_validation_split_only_with_rounds():
    assert parse().rounds_stop.max_nll_increase == 0.2
    assert parse(rounds=3, rounds_stop={"max_nll_increase": None}).training.validation_rows == 0


def test_the_baseline_takes_the_steps_of_all_rounds():
    config = parse(rounds=3, **VALIDATED)
    assert (config.training.steps, config.mle_training.steps) == (10, 30)
    assert config.mle_training == config.training.model_copy(update={"steps": 30})
