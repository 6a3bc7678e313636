"""A run: all sections, and the rules between them."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from cpo_ray.config.adapter import AdapterConfig
from cpo_ray.config.cluster import ClusterConfig
from cpo_ray.config.data import DataConfig
from cpo_ray.config.evaluation import GenerationConfig, JudgeConfig, MauveConfig, RewardConfig, TextMetricsConfig
from cpo_ray.config.objective import ObjectiveConfig
from cpo_ray.config.rounds import RoundsStopConfig
from cpo_ray.config.sampling import SamplingConfig
from cpo_ray.config.section import EXECUTION, Section
from cpo_ray.config.serving import MergingConfig, ServingConfig
from cpo_ray.config.split_sizes import is_share
from cpo_ray.config.training import (
    MleConfig,
    ModelConfig,
    TrackingConfig,
    TrainingConfig,
    TuningConfig,
)

NO_NEGATIVES = {"batch": 0, "meanfield": 0, "truncation": 0}


class RunConfig(Section):
    """The whole run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """The run's name. Its directory is `runs/<name>`, or the one given with --run-dir."""
    seed: Annotated[int, Field(ge=0)] = 17
    """Every random draw is seeded by (seed, row id, kind, index)."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig | None = None
    """Train a low-rank adapter (LoRA) instead of all weights; `{}` takes the defaults. Default: all weights."""
    reference: TrainingConfig = TrainingConfig()
    """Stage `reference`: MLE from `model` (the paper: 2000 steps). Anneal it, or any continued training looks like a gain."""
    sampling: SamplingConfig = SamplingConfig()
    training: TrainingConfig = TrainingConfig()
    """Stages `cpo` and `mle`, both continued from the reference."""
    rounds: Annotated[int, Field(ge=1)] = 1
    """Iterated CPO: sample groups from the reference, train for `training.steps`, make the policy the next reference, again.
    The last policy is the model `cpo`. Stage `mle` trains for as many steps as all rounds together. See
    [Training](training.md#rounds)."""
    rounds_stop: RoundsStopConfig = RoundsStopConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    mle: MleConfig = MleConfig()
    tuning: TuningConfig = TuningConfig()
    tracking: TrackingConfig = Field(default=TrackingConfig(), json_schema_extra=EXECUTION)
    merging: MergingConfig = MergingConfig()
    serving: ServingConfig = ServingConfig()
    generation: GenerationConfig = GenerationConfig()
    judge: JudgeConfig = JudgeConfig()
    reward: RewardConfig = RewardConfig()
    mauve: MauveConfig = MauveConfig()
    text_metrics: TextMetricsConfig = TextMetricsConfig()
    cluster: ClusterConfig = Field(default=ClusterConfig(), json_schema_extra=EXECUTION)

    @model_validator(mode="before")
    @classmethod
    def _default_to_the_tokenizer_of_the_model(cls, sections: Any) -> Any:
        """Set `data.tokenizer.path` to `model.path` if only the latter is given, before anything reads either."""
        model = sections.get("model") if isinstance(sections, dict) else None
        path = model.path if isinstance(model, ModelConfig) else model.get("path") if isinstance(model, dict) else None
        return sections if path is None else sections | {"data": _with_tokenizer(sections.get("data", {}), path)}

    @model_validator(mode="before")
    @classmethod
    def _default_to_the_answers_of_the_data(cls, sections: Any) -> Any:
        """Set the counts of negatives to 0 unless they are given, if the data has ranked answers."""
        if not isinstance(sections, dict):
            return sections
        data, sampling = sections.get("data"), sections.get("sampling", {})
        if not isinstance(data, dict) or not isinstance(sampling, dict) or not _has_answers(data):
            return sections
        given = sampling.get("negatives", {})
        return (
            sections | {"sampling": sampling | {"negatives": NO_NEGATIVES | given}}
            if isinstance(given, dict)
            else sections
        )

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if self.candidates < 2:
            raise ValueError("sampling.negatives: K = 1: at least one negative per prompt is needed (K >= 2)")
        if self.model.path is None and (excess := self.context_excess(self.model.context)):
            raise ValueError(f"{excess} exceeds model.context {self.model.context}")
        self._check_sampling()
        self._check_trainings()
        if self.tuning.learning_rates:
            self._check_tuning()
        if self.rounds > 1:
            self._check_rounds()
        if self.adapter is not None and self.adapter.quantize is not None:
            self._check_quantization(self.adapter.quantize)
        unknown = [name for name in self.evaluated_models if name not in self.models]
        if unknown:
            raise ValueError(f"generation.models: there is no {unknown[0]!r}; this run makes {', '.join(self.models)}")
        return self

    def _check_sampling(self) -> None:
        size, key = self.sampling.batch_rows, "sampling.batch_rows"
        if self.sampling.stream:
            size, key = self.training.prompts_per_step, "training.prompts_per_step (sampling.stream)"
        if self.sampling.negatives.batch >= size:
            raise ValueError(
                f"sampling.negatives.batch {self.sampling.negatives.batch} needs more than that many rows to draw from, "
                f"but {key} is {size}"
            )
        if self.sampling.shard_rows % self.sampling.batch_rows:
            raise ValueError(
                f"sampling.shard_rows {self.sampling.shard_rows} is not a multiple of sampling.batch_rows "
                f"{self.sampling.batch_rows}"
            )
        if self.sampling.stream and self.objective.scores == "given":
            raise ValueError(
                "objective.scores: given needs groups with scores, and negatives that are sampled while training runs "
                "(sampling.stream) have none: objective.scores: rank or similarity"
            )

    def context_excess(self, context: int) -> str | None:
        """The sum of the longest prompt and the longest response if it exceeds a model's `context` positions, or None."""
        prompt, response = self.data.max_prompt_tokens, self.data.max_response_tokens
        if prompt + response <= context:
            return None
        return f"data.max_prompt_tokens {prompt} + data.max_response_tokens {response} = {prompt + response}"

    def _check_trainings(self) -> None:
        for section in ("reference", "training"):
            rows = getattr(self, section).validation_rows
            if not is_share(self.data.validation_rows) and rows > self.data.validation_rows:
                raise ValueError(
                    f"{section}.validation_rows {rows} exceeds data.validation_rows {self.data.validation_rows}"
                )
            if self.model.path is None and getattr(self, section).router_auxiliary_loss:
                raise ValueError(
                    f"{section}.router_auxiliary_loss: model.architecture {self.model.architecture} has no routers. Set it "
                    "to 0, or name a mixture-of-experts model in model.path"
                )

    def _check_tuning(self) -> None:
        if not self.training.validation_rows:
            raise ValueError(
                "tuning.learning_rates needs training.validation_rows: the validation loss decides which rate is best. "
                f"data.validation_rows is {self.data.validation_rows}"
            )
        if self.mle.learning_rate is not None:
            raise ValueError(
                f"mle.learning_rate {self.mle.learning_rate:g} has no effect with tuning.learning_rates, which replace it: "
                "remove one of the two"
            )
        if self.sampling.stream:
            raise ValueError(
                "tuning.learning_rates cannot be combined with sampling.stream, where negatives are sampled for one training: "
                "find the rates with sampling.stream: false, then set training.learning_rate and mle.learning_rate"
            )

    def _check_rounds(self) -> None:
        if self.adapter is not None and self.adapter.export == "adapter":
            raise ValueError(
                f"adapter.export adapter cannot be combined with rounds {self.rounds}: every round is sampled from the whole "
                "model of the one before. adapter.export: merged writes the adapter too"
            )
        if self.sampling.stream:
            raise ValueError(
                f"rounds {self.rounds} cannot be combined with sampling.stream, which samples during one training: there, "
                "sampling.refresh_steps moves the negatives with the policy, and sampling.refresh_reference the reference"
            )
        if self.tuning.learning_rates:
            raise ValueError(
                f"rounds {self.rounds} cannot be combined with tuning.learning_rates: find the rates with rounds: 1, then set "
                "training.learning_rate and mle.learning_rate"
            )
        if self.rounds_stop.max_nll_increase is not None and not self.training.validation_rows:
            raise ValueError(
                f"rounds {self.rounds} needs training.validation_rows: after each round the gold's likelihood on the "
                f"validation split decides whether to go on. data.validation_rows is {self.data.validation_rows}. "
                "rounds_stop.max_nll_increase: null goes on without this rule"
            )

    def _check_quantization(self, quantize: str) -> None:
        if self.model.path is None:
            raise ValueError(
                f"adapter.quantize {quantize} needs model.path: a model from random weights is trained whole, so its weights "
                "cannot be frozen in 4 bits"
            )
        for section in ("reference", "training"):
            if getattr(self, section).zero_stage == 3:
                raise ValueError(
                    f"adapter.quantize {quantize} cannot be combined with {section}.zero_stage 3, which would cut the 4-bit "
                    f"blocks apart: use {section}.zero_stage 2"
                )

    @property
    def mle_training(self) -> TrainingConfig:
        """Settings of stage `mle`: those of `cpo`, for the steps of all rounds, with its own learning rate if it has one."""
        rate, steps = self.mle.learning_rate, self.rounds * self.training.steps
        return self.training.model_copy(update={"steps": steps} | ({} if rate is None else {"learning_rate": rate}))

    @property
    def candidates(self) -> int:
        """K; with ranked answers, of which rows may have fewer, the largest."""
        return (self.data.max_answers if self.data.has_answers else 1) + self.sampling.negatives.total

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models of the run, in the order of the tables."""
        return ("reference", "mle", "cpo", *(self.merging.model_name(alpha) for alpha in self.merging.alphas))

    @property
    def evaluated_models(self) -> tuple[str, ...]:
        """Names of the models that answer and are judged."""
        return self.generation.models or self.models


def _has_answers(data: dict[str, Any]) -> bool:
    sources = data.get("sources")
    entries = [data, *(sources if isinstance(sources, list | tuple) else ())]
    return any(isinstance(entry, dict) and entry.get("source") == "preferences" for entry in entries)


def _with_tokenizer(data: Any, path: Any) -> Any:
    """The section `data`, as read or as validated, with a tokenizer at `path` if it names none."""
    if isinstance(data, DataConfig):
        own = data.tokenizer.model_copy(update={"path": data.tokenizer.path or path})
        return data.model_copy(update={"tokenizer": own})
    tokenizer = data.get("tokenizer", {}) if isinstance(data, dict) else None
    if not isinstance(tokenizer, dict) or tokenizer.get("path") is not None:
        return data
    return data | {"tokenizer": tokenizer | {"path": path}}
