"""Quote the study: how much a recipe changes repetition over training seeds, for a run of a recipe that it measured.

A run's own interval is over prompts alone. The study has many seeds; `python -m study.page` writes what is quoted here.
"""

import json
from importlib.resources import files
from typing import TypedDict

from cpo_ray.artifacts import content_key
from cpo_ray.config import RunConfig, stage_inputs
from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ConfigError
from cpo_ray.report.findings import signed
from cpo_ray.report.run_contents import RunContents

QUOTED = "study.json"
# Sections that the greedy answers of `mle` and `cpo` do not depend on. `generation` has its decodings, too.
APART = frozenset({"name", "seed", "merging", "serving", "generation", "judge", "mauve", "text_metrics", "reward"})


class Quote(TypedDict):
    """CPO minus continued MLE, over seeds: the distance between the rep-4 of greedy answers and that of the truth."""

    arm: str
    date: str
    seeds: int
    value: float
    low: float  # 95%, Student's over seeds
    high: float


def recipe_of(config: RunConfig) -> str:
    """Hash of everything that greedy answers depend on, but for the seed."""
    inputs = {key: value for key, value in stage_inputs(config).items() if key not in APART}
    return content_key(inputs)[:16]


def study_sentence(run: RunContents, quotes: dict[str, Quote] | None = None) -> str | None:
    """The study's result for the recipe of a run; None if the study has not measured it. quotes: recipe -> result."""
    try:
        config = parse_config(run.config, "config.json")
    except ConfigError:  # of another version, whose recipes the study of this one did not measure
        return None
    quote = (read_quotes() if quotes is None else quotes).get(recipe_of(config))
    if quote is None:
        return None
    value, low, high = (signed(100 * quote[key]) for key in ("value", "low", "high"))
    return (
        f"Over {quote['seeds']} training seeds, the study of {quote['date']} finds {value} points of distance to the truth's "
        f"repetition for this recipe against continued MLE (95% interval over seeds {low} to {high})."
    )


def read_quotes() -> dict[str, Quote]:
    """Recipe -> the study's result; none before the study has results."""
    file = files(__package__).joinpath(QUOTED)
    found: dict[str, Quote] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found
