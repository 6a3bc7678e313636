import pytest

from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ConfigError

RATES = {"learning_rates": [1e-5, 3e-5]}
VALIDATED = {"data": {"validation_rows": 8}, "training": {"validation_rows": 8}}


def parse(**tree):
    return parse_config({"name": "x", **tree}, "x.yaml")


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"tuning": RATES}, "tuning.learning_rates needs training.validation_rows: the validation loss decides"),
        ({"tuning": RATES, "mle": {"learning_rate": 1e-4}} | VALIDATED, "mle.learning_rate 0.0001 has no effect with"),
        ({"tuning": RATES, "sampling": {"stream": True}} | VALIDATED, "cannot be combined with sampling.stream"),
        ({"tuning": {"learning_rates": [1e-5]}}, "one rate leaves nothing to choose; set training.learning_rate"),
        ({"tuning": {"learning_rates": [1e-5, 0.00001]}}, r"name one rate twice"),
        ({"tuning": {"learning_rates": [1e-5, 1.2345678e-5]}}, "which may have at most six digits"),
        ({"tuning": {"learning_rates": [0, 1]}}, "tuning.learning_rates.0: Input should be greater than 0, got 0"),
        ({"mle": {"learning_rate": 2}}, "mle.learning_rate: Input should be less than or equal to 1, got 2"),
        ({"mle": {"learning_rat": 1}}, "did you mean `mle.learning_rate`"),
    ],
)
def test_errors_name_the_key_and_the_remedy(tree, words):
    with pytest.raises(ConfigError) as caught:
        parse(**tree)
    assert words in str(caught.value)


def test_trials_are_named_by_their_rates():
    config = parse(tuning=RATES, **VALIDATED)
    assert config.tuning.trial_names == ["1e-05", "3e-05"]
    assert (config.tuning.trials, parse().tuning.trials) == (2, 1)


def test_the_baseline_shares_every_setting_but_its_learning_rate():
    config = parse(training={"steps": 7}, mle={"learning_rate": 3e-4})
    assert config.mle_training == config.training.model_copy(update={"learning_rate": 3e-4})
    assert parse().mle_training == parse().training
