"""What rounds of CPO cost, and how `validate` describes them."""

import pytest

from cpo_ray.planning.scaling import scale
from cpo_ray.planning.tables import describe_run
from cpo_ray.planning.work import stage_work
from tests.planning.test_scaling import MACHINE, SHAPE, TOKENS, config, plan

ONCE = config(steps=1000)
THRICE = ONCE.model_validate(ONCE.model_dump(mode="json") | {"rounds": 3, "rounds_stop": {"max_nll_increase": None}})


def test_every_round_samples_and_trains_and_the_baseline_takes_all_steps_at_once():
    once, thrice = ({item.stage: item for item in stage_work(run, SHAPE, TOKENS, MACHINE, 8)} for run in (ONCE, THRICE))
    for stage, item in once.items():
        times = 1 if stage in ("reference", "generation") else 3
        assert thrice[stage].hours == pytest.approx(times * item.hours), stage
        assert thrice[stage].start_hours == pytest.approx((1 if stage == "mle" else times) * item.start_hours), stage


def test_every_step_sends_its_gradients():
    once, thrice = (scale(plan(run), 2) for run in (ONCE, THRICE))
    assert thrice.network_hours == pytest.approx(7 / 3 * once.network_hours)  # the reference once, the others thrice


def test_a_configuration_says_what_its_rounds_are():
    assert (
        "CPO: 3 rounds of 1000 steps, each with new groups; MLE: 3000 steps over the same 3,000 prompts, 64.0 epochs"
        in describe_run(THRICE)
    )
