import pytest
import yaml
from pydantic import ValidationError

from cpo_ray.errors import ConfigError
from study.plan import read_plan
from tests.study.fake_plan import AGAINST_MLE, REP, make_plan


def test_estimands_are_readable():
    plan = make_plan()
    assert plan.hypotheses["H1"].tests[0].estimand == "greedy/cpo - greedy/mle"
    trend = {"k2/cpo": -1.5, "k4/cpo": -0.5, "k8/cpo": 0.5, "k12/cpo": 1.5}
    tests = [{"metric": "rep", "contrast": trend, "direction": "less"}]
    arms = dict.fromkeys(["k2", "k4", "k8", "k12"], "")
    plan = make_plan(arms=arms, hypotheses={"H6": {"claim": "More negatives help", "tests": tests}})
    assert plan.hypotheses["H6"].tests[0].estimand == "- 1.5 k2/cpo - 0.5 k4/cpo + 0.5 k8/cpo + 1.5 k12/cpo"
    assert plan.information == (0.5, 1.0)


def hypothesis(**test):
    return {
        "hypotheses": {
            "H": {"claim": "x", "tests": [{"metric": "rep", "contrast": AGAINST_MLE, "direction": "less"} | test]}
        }
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"looks": [4, 7]}, "must rise from at least 2 to the number of seeds, 8"),
        ({"looks": [1, 8]}, "must rise from at least 2"),
        (hypothesis(metric="repp"), "there is no 'repp'; did you mean 'rep'?"),
        (hypothesis(contrast={"gredy/cpo": 1, "greedy/mle": -1}), "there is no 'gredy'; did you mean 'greedy'?"),
        (hypothesis(contrast={"greedy": 1, "greedy/mle": -1}), "'greedy' names no model; write arm/model"),
        (hypothesis(contrast={"greedy/cpo": 1, "greedy/mle": -0.5}), "must sum to 0"),
        ({"picked": {"best": {"models": ["mle", "cpo"], "metric": "nll"}}}, "metrics.nll has no `rows`"),
        ({"picked": {"best": {"models": ["mle", "cpo"], "metric": "rep"}}, "metrics": {"rep": REP, "other": REP}}
         | hypothesis(metric="other", contrast={"greedy/best": 1, "greedy/mle": -1}), "best is picked by rep, not other"),
        ({"stop": 3}, "Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(changes, message):
    with pytest.raises(ValidationError) as error:
        make_plan(**changes)
    assert message in str(error.value)


def test_a_file_names_the_key_of_a_mistake(tmp_path):
    file = tmp_path / "plan.yaml"
    with pytest.raises(ConfigError, match="there is no preregistration"):
        read_plan(file)
    file.write_text(yaml.safe_dump(make_plan().model_dump(mode="json")))
    assert read_plan(file) == make_plan()
    file.write_text("seeds: [1, 2]\n")
    with pytest.raises(ConfigError, match="tuning_seeds: Field required"):
        read_plan(file)
