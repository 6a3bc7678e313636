"""The study in study/: its files fit together."""

from pathlib import Path

import pytest

from cpo_ray.submission.sweeps.grid import load_sweep
from study.plan import read_plan

STUDY = Path(__file__).parents[2] / "study"


@pytest.fixture(scope="module")
def shipped():
    """The sweep and the plan."""
    return load_sweep(STUDY / "study.yaml"), read_plan(STUDY / "preregistration.yaml")


def test_the_preregistration_is_that_of_the_sweep(shipped):
    sweep, plan = shipped
    assert (STUDY / sweep.file.preregistration).is_file()
    assert sweep.file.seeds == plan.seeds
    assert set(sweep.arms) == plan.arms.keys()
    assert not set(plan.seeds) & set(plan.tuning_seeds)
    assert sweep.runs[0].config.seed == plan.seeds[0]


def test_every_model_of_a_contrast_is_evaluated_in_its_arm(shipped):
    sweep, plan = shipped
    evaluated = {run.arm: run.config.evaluated_models for run in sweep.first_of_arm()}
    for hypothesis in plan.hypotheses.values():
        for test in hypothesis.tests:
            for arm, model in (term.split("/") for term in test.contrast):
                for name in plan.picked[model].models if model in plan.picked else [model]:
                    assert name in evaluated[arm], (arm, name)


def test_the_decodings_of_the_metrics_are_generated(shipped):
    sweep, plan = shipped
    decodings = sweep.runs[0].config.generation.decodings
    named = {"greedy", "sampled"} & {key for metric in plan.metrics.values() for key in metric.value}
    assert named <= decodings.keys()


def test_arms_are_compared_under_equal_training(shipped):
    """Every arm's MLE has the steps, the rows and the tuning of its CPO."""
    for run in shipped[0].first_of_arm():
        training, mle = run.config.training, run.config.mle_training
        assert (run.config.rounds * training.steps, training.prompts_per_step) == (mle.steps, mle.prompts_per_step)
