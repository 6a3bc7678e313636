"""The learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

import math

from cpo_ray.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of a step (from 0): linear warm-up from 0, then the schedule down to its end at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    fraction = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
        config.schedule
    ]
    if config.schedule != "constant":
        fraction = config.final_learning_rate + (1 - config.final_learning_rate) * fraction
    return config.learning_rate * fraction
