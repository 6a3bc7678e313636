"""A run: all sections, and the rules between them."""

from typing import Annotated

from pydantic import Field, model_validator

from cpo_ray.config.cluster import ClusterConfig
from cpo_ray.config.data import DataConfig
from cpo_ray.config.evaluation import GenerationConfig, JudgeConfig, MauveConfig, RewardConfig
from cpo_ray.config.sampling import SamplingConfig
from cpo_ray.config.section import EXECUTION, Section
from cpo_ray.config.serving import MergingConfig, ServingConfig
from cpo_ray.config.training import MleConfig, ModelConfig, ObjectiveConfig, TrackingConfig, TrainingConfig


class RunConfig(Section):
    """The whole run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """The run's name. Its directory is `runs/<name>`, or the one given with --run-dir."""
    seed: Annotated[int, Field(ge=0)] = 17
    """Every random draw is seeded by (seed, row id, kind, index)."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    reference: TrainingConfig = TrainingConfig()
    """Stage `reference`: MLE from `model` (the paper: 2000 steps). Anneal it, or any continued training looks like a gain."""
    sampling: SamplingConfig = SamplingConfig()
    training: TrainingConfig = TrainingConfig()
    """Stages `cpo` and `mle`, both continued from the reference."""
    objective: ObjectiveConfig = ObjectiveConfig()
    mle: MleConfig = MleConfig()
    tracking: TrackingConfig = Field(default=TrackingConfig(), json_schema_extra=EXECUTION)
    merging: MergingConfig = MergingConfig()
    serving: ServingConfig = ServingConfig()
    generation: GenerationConfig = GenerationConfig()
    judge: JudgeConfig = JudgeConfig()
    reward: RewardConfig = RewardConfig()
    mauve: MauveConfig = MauveConfig()
    cluster: ClusterConfig = Field(default=ClusterConfig(), json_schema_extra=EXECUTION)

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        longest = self.data.max_prompt_tokens + self.data.max_response_tokens
        if self.model.path is None and longest > self.model.context:
            raise ValueError(
                f"data.max_prompt_tokens {self.data.max_prompt_tokens} + data.max_response_tokens "
                f"{self.data.max_response_tokens} = {longest} exceeds model.context {self.model.context}"
            )
        size, key = self.sampling.batch_rows, "sampling.batch_rows"
        if self.sampling.stream:
            size, key = self.training.prompts_per_step, "training.prompts_per_step (sampling.stream)"
        if self.sampling.negatives.batch >= size:
            raise ValueError(
                f"sampling.negatives.batch {self.sampling.negatives.batch} needs more than that many rows to draw from, "
                f"but {key} is {size}"
            )
        for section in ("reference", "training"):
            rows = getattr(self, section).validation_rows
            if rows > self.data.validation_rows:
                raise ValueError(
                    f"{section}.validation_rows {rows} exceeds data.validation_rows {self.data.validation_rows}"
                )
        unknown = [name for name in self.evaluated_models if name not in self.models]
        if unknown:
            raise ValueError(f"generation.models: there is no {unknown[0]!r}; this run makes {', '.join(self.models)}")
        if self.sampling.shard_rows % self.sampling.batch_rows:
            raise ValueError(
                f"sampling.shard_rows {self.sampling.shard_rows} is not a multiple of sampling.batch_rows "
                f"{self.sampling.batch_rows}"
            )
        return self

    @property
    def candidates(self) -> int:
        """K."""
        return 1 + self.sampling.negatives.total

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models of the run, in the order of the tables."""
        return ("reference", "mle", "cpo", *(self.merging.model_name(alpha) for alpha in self.merging.alphas))

    @property
    def evaluated_models(self) -> tuple[str, ...]:
        """Names of the models that answer and are judged."""
        return self.generation.models or self.models
