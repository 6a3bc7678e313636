"""The preregistered plan: metrics, hypotheses and how they are tested, read from `preregistration.yaml`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from cpo_ray.config import Section
from cpo_ray.config.spelling import did_you_mean
from cpo_ray.errors import ConfigError
from study.estimates import Direction

JsonPath = tuple[str | int, ...]  # keys and positions from a file's top to a number; `{model}` is the model's name


class RowValues(Section):
    """A metric's value of each answer: a JSONL file, and the key of the value in its lines."""

    file: str
    key: str


class Metric(Section):
    """A number of one model of one run."""

    label: str
    about: str
    """Its definition, for the page."""
    file: str
    """A JSON file below the run directory; `{model}` is the model's name."""
    value: JsonPath
    """Where the number is in the file."""
    truth: JsonPath = ()
    """Where the same of the ground truth is. With it, the metric is the absolute difference between both."""
    scale: float = 1.0
    """Factor of the number."""
    better: Literal["lower", "higher"]
    decimals: Annotated[int, Field(ge=0, le=6)] = 3
    rows: RowValues | None = None
    """The values of single answers, whose mean the number is; needed to pick a model on half of the rows."""


class Picked(Section):
    """A model that is picked by a metric on one half of the rows and measured on the other, for both halves, and averaged.

    Within a run, so by no other seed. Its name stands for a model in contrasts of the same metric.
    """

    models: Annotated[tuple[str, ...], Field(min_length=2)]
    metric: str


class Test(Section):
    """A weighted sum of models' values of a metric, for each seed, whose mean is less or greater than a margin."""

    metric: str
    contrast: Annotated[dict[str, float], Field(min_length=2)]
    """`arm/model` -> weight. The weights sum to 0."""
    direction: Direction
    margin: float = 0.0

    @model_validator(mode="after")
    def _check(self) -> "Test":
        if abs(sum(self.contrast.values())) > 1e-9:
            raise ValueError(f"the weights {list(self.contrast.values())} must sum to 0: a contrast compares")
        return self

    @property
    def estimand(self) -> str:
        """The contrast for people: `greedy/cpo - greedy/mle`."""
        terms = []
        for name, weight in self.contrast.items():
            size = "" if abs(weight) == 1 else f"{abs(weight):g} "
            terms.append(f"{'-' if weight < 0 else '+'} {size}{name}")
        return " ".join(terms).removeprefix("+ ")


class Hypothesis(Section):
    """A claim that holds if all its tests do."""

    claim: str
    paper: str = ""
    """What the paper says of it, and where."""
    tests: Annotated[tuple[Test, ...], Field(min_length=1)]
    negligible: Annotated[float, Field(gt=0)] | None = None
    """An effect below this does not matter: an interval within +- this, of any test, says that the claim does not hold."""


class Plan(Section):
    """The whole preregistration."""

    seeds: Annotated[tuple[int, ...], Field(min_length=2)]
    """In this order: look k has the first `looks[k]` of them."""
    tuning_seeds: tuple[int, ...]
    """The seeds that settings were chosen on."""
    arms: dict[str, str]
    """Arm -> what it is. Every run also has the models `reference` and `mle`."""
    looks: Annotated[tuple[int, ...], Field(min_length=1, max_length=2)]
    """Numbers of seeds at which the hypotheses are tested; the last is the number of seeds."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Probability of any false rejection, two-sided, over all hypotheses and looks."""
    metrics: dict[str, Metric]
    picked: dict[str, Picked] = Field(default={})
    hypotheses: dict[str, Hypothesis]

    @model_validator(mode="after")
    def _check(self) -> "Plan":
        if sorted(set(self.looks)) != list(self.looks) or self.looks[0] < 2 or self.looks[-1] != len(self.seeds):
            raise ValueError(
                f"looks {list(self.looks)} must rise from at least 2 to the number of seeds, {len(self.seeds)}"
            )
        for name, picked in self.picked.items():
            _check_known(picked.metric, self.metrics, f"picked.{name}.metric")
            if self.metrics[picked.metric].rows is None:
                raise ValueError(f"picked.{name}: metrics.{picked.metric} has no `rows` to divide into halves")
        for name, hypothesis in self.hypotheses.items():
            for test in hypothesis.tests:
                _check_known(test.metric, self.metrics, f"hypotheses.{name}")
                for term in test.contrast:
                    arm, _, model = term.partition("/")
                    _check_known(arm, self.arms, f"hypotheses.{name}: {term}")
                    if not model:
                        raise ValueError(f"hypotheses.{name}: {term!r} names no model; write arm/model")
                    if model in self.picked and self.picked[model].metric != test.metric:
                        raise ValueError(
                            f"hypotheses.{name}: {model} is picked by {self.picked[model].metric}, not {test.metric}"
                        )
        return self

    @property
    def information(self) -> tuple[float, ...]:
        """The share of the seeds at each look."""
        return tuple(seeds / len(self.seeds) for seeds in self.looks)


def read_plan(file: Path) -> Plan:
    """Read and check a preregistration. Raises ConfigError, naming the key."""
    try:
        return Plan.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"there is no preregistration {file}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        raise ConfigError(f"{file}:\n" + "\n".join(lines)) from None


def _check_known(name: str, known: Iterable[str], where: str) -> None:
    if name not in known:
        raise ValueError(f"{where}: there is no {name!r}{did_you_mean(name, known, '{!r}')}")
