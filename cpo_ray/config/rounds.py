"""Iterated CPO: when to stop making the policy the next reference."""

from typing import Annotated

from pydantic import Field

from cpo_ray.config.section import Section


class RoundsStopConfig(Section):
    """The stop rule of `rounds`, decided after each round on the first `training.validation_rows` of the validation split."""

    max_nll_increase: Annotated[float, Field(gt=0)] | None = 0.2
    """Largest increase of the gold's negative log-likelihood over that under the first reference, in nat per token. A round
    beyond it is discarded, later ones are skipped, and the policy of the round before is the result. A first round is kept
    all the same, with a warning. null: take all rounds."""
