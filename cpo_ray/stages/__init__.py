"""What each stage reads, makes and depends on. The wings are called here and nowhere else: they never call each other."""

from cpo_ray.stages.evaluating import generation, judge_key, judging, mauve, report, reward
from cpo_ray.stages.making import cpo, data, merging, mle, reference, sampling

__all__ = [
    "cpo",
    "data",
    "generation",
    "judge_key",
    "judging",
    "mauve",
    "merging",
    "mle",
    "reference",
    "report",
    "reward",
    "sampling",
]
