"""What several learning rates cost, and how `validate` describes them."""

import pytest

from cpo_ray.planning.scaling import scale
from cpo_ray.planning.tables import describe_run
from cpo_ray.planning.work import stage_work
from tests.planning.test_scaling import MACHINE, SHAPE, TOKENS, config, plan

ONCE = config(steps=1000)


def tuned(rates):
    tree = config(steps=1000).model_dump(mode="json")
    tree["data"] |= {"validation_rows": 8}
    tree["training"] |= {"validation_rows": 8}
    return type(ONCE).model_validate(tree | {"tuning": {"learning_rates": rates}})


def test_every_learning_rate_costs_a_training_of_both_methods():
    once, thrice = (
        {item.stage: item for item in stage_work(run, SHAPE, TOKENS, MACHINE, 8)}
        for run in (ONCE, tuned([1e-5, 3e-5, 1e-4]))
    )
    for stage, item in once.items():
        times = 3 if stage in ("cpo", "mle") else 1
        assert thrice[stage].hours == pytest.approx(times * item.hours), stage
        assert thrice[stage].start_hours == pytest.approx(times * item.start_hours), stage


def test_every_learning_rate_sends_its_gradients():
    once, twice = (scale(plan(run), 2) for run in (ONCE, tuned([1e-5, 3e-5])))
    assert twice.network_hours == pytest.approx(5 / 3 * once.network_hours)  # the reference once, the others twice


def test_a_configuration_says_how_its_learning_rates_are_found():
    assert "CPO and MLE: 1000 steps each over the same 3,000 prompts, 21.3 epochs" in describe_run(ONCE)
    assert "learning rates: 1e-05 for CPO, 1e-05 for MLE" in describe_run(ONCE)
    (line,) = [line for line in describe_run(tuned([1e-5, 3e-5])) if line.startswith("learning rates")]
    assert line == (
        "learning rates: 1e-05, 3e-05 are tried by CPO and by MLE, 4 trainings; the loss on 8 validation prompts chooses one "
        "of each"
    )
