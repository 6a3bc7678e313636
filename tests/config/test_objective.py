import pytest
from pydantic import ValidationError

from cpo_ray.config import ObjectiveConfig, RunConfig


def test_the_default_is_the_paper_s_loss():
    default = ObjectiveConfig()
    assert (default.loss, default.beta, default.ranked, default.by_ranks) == ("cpo", 5.0, True, True)
    assert not default.rewarded


def test_ranks_are_the_paper_s_alone():
    assert not ObjectiveConfig(loss="nca").by_ranks
    assert ObjectiveConfig(loss="nca").rewarded
    assert not ObjectiveConfig(loss="simpo").rewarded


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"label_smoothing": 0.1, "loss": "nca"},
            "label_smoothing 0.1 has no effect with loss: nca: a higher score_temp",
        ),
        ({"scores": "similarity"}, "scores similarity has no effect with loss: cpo: cpo reads ranks"),
        ({"score_temperature": 0.5, "loss": "listwise"}, "score_temperature 0.5 has no effect with loss: listwise"),
        ({"gamma": 1.0}, "gamma 1.0 has no effect with loss: cpo: set loss: simpo"),
        ({"loss": "listwise", "scores": "similarity"}, "a cosine can be negative. loss: infonca takes any"),
        ({"loss": "simpo", "length_normalised": True}, "loss: simpo is per token already"),
        ({"loss": "simpo", "gold_floor_weight": 1.0}, "which loss: simpo does without"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"loss": "dpo"}, "'cpo', 'infonca', 'nca', 'lipo', 'listwise' or 'simpo'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_remedy(keys, message):
    with pytest.raises(ValidationError) as caught:
        ObjectiveConfig(**keys)
    assert message in str(caught.value)


def test_streamed_negatives_have_no_given_scores():
    with pytest.raises(ValidationError, match=r"objective\.scores: rank or similarity"):
        RunConfig.model_validate(
            {"name": "x", "sampling": {"stream": True}, "objective": {"loss": "infonca", "scores": "given"}}
        )
