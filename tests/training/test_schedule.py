import pytest

from cpo_ray.config import TrainingConfig
from cpo_ray.training.schedule import learning_rate


def rates(**settings):
    config = TrainingConfig(steps=10, learning_rate=1.0, **settings)
    return [learning_rate(config, step) for step in range(10)]


def test_warm_up_rises_to_the_peak():
    assert rates(warmup_steps=4, schedule="constant") == [0.25, 0.5, 0.75, 1.0, *[1.0] * 6]


def test_schedules_end_at_the_configured_rate():
    assert rates(schedule="linear") == pytest.approx([1 - i / 10 for i in range(10)])
    cosine = rates(schedule="cosine", final_learning_rate=0.1)
    assert cosine[0] == 1.0
    assert cosine[5] == pytest.approx(0.55)
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[-1] > 0.1
