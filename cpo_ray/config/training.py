"""Stages `reference`, `cpo` and `mle`: the model, the optimizer and the baseline."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cpo_ray.config.section import EXECUTION, Auto, Section

CPU_WORKERS = 2  # of a training on a machine without GPUs


class ModelConfig(Section):
    """The model that the reference starts from: initialised from scratch, or loaded."""

    path: str | None = None
    """A Hugging Face directory or hub id (safetensors). Default: initialise a model from the keys below."""
    architecture: Literal["llama", "gpt2"] = "llama"
    """Architecture of a model initialised from scratch."""
    hidden_size: Annotated[int, Field(ge=16)] = 160
    """Width of the residual stream."""
    layers: Annotated[int, Field(ge=1)] = 4
    """Transformer blocks."""
    heads: Annotated[int, Field(ge=1)] = 5
    """Attention heads; `hidden_size / heads` must be one of vLLM's head sizes (32, 64, 80, 96, 112, 128, ...)."""
    intermediate_size: Annotated[int, Field(ge=16)] = 448
    """Width of the feed-forward block."""
    context: Annotated[int, Field(ge=32)] = 256
    """Context length in tokens. Prompt and response together must fit."""
    tie_embeddings: bool = True
    """Share the input embedding with the LM head."""

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.path is None and self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}: "
                f"{self.hidden_size} = {self.heads} x {self.hidden_size // self.heads} + {self.hidden_size % self.heads}"
            )
        return self


class TrainingConfig(Section):
    """Training settings that do not depend on the loss. CPO and continued MLE share one section: same steps, same schedule.

    Their learning rates may differ (`mle.learning_rate`, `tuning`)."""

    steps: Annotated[int, Field(ge=1)] = 300
    """Optimizer steps."""
    prompts_per_step: Annotated[int, Field(ge=1)] = 64
    """The batch size: prompts per optimizer step over all workers, each with its K candidates (the paper: 64)."""
    prompts_per_microbatch: Annotated[int, Field(ge=1)] = Field(default=16, json_schema_extra=EXECUTION)
    """Prompts per forward and backward pass of one worker. Lower it if a worker runs out of memory (OOM)."""
    row_tokens: Annotated[int, Field(ge=16)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """Tokens of a packed row, which holds several groups. Default: the length of the longest group of a microbatch, which is
    best without FlexAttention; with it, a fixed length, a multiple of 128, is compiled once. A longer group is an error."""
    activation_checkpointing: bool = Field(default=False, json_schema_extra=EXECUTION)
    """Recompute activations in the backward pass instead of storing them: about a third slower, far less memory."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Peak learning rate of AdamW (the paper: 1e-5)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW's decoupled weight decay (the paper: 0.05)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's decay rates for the gradient's mean and mean square. A short run from scratch learns faster with (0.9, 0.95)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Decay from the peak to `final_learning_rate` after the warm-up."""
    final_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end of the schedule, as a fraction of the peak."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this global norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model. Log-prob sums and losses are float32 in both cases."""
    dropout: Literal["none", "model"] = "none"
    """`none`: dropout is off, so that policy and reference are the same function wherever their log-probs are compared.
    `model`: in training steps the model's own rates are used, except those of attention weights. Scoring, the check of the
    first loss and validation never use dropout."""
    router_auxiliary_loss: Annotated[float, Field(ge=0)] = 0.0
    """For mixture-of-experts models: the coefficient of the routers' auxiliary loss, which balances the load of the experts. It
    is the model's own function, over each microbatch, in which every token of a group counts once. 0: off, the objective is the
    loss alone. Models were often trained with 0.001 to 0.02. Any other model is refused."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO stage: what is partitioned over the workers (0 nothing, 1 optimizer, 2 + gradients, 3 + parameters)."""
    workers: Auto[Annotated[int, Field(ge=1)]] = Field(default=None, json_schema_extra=EXECUTION)
    """Training workers, one process each. A run may be resumed with another number of workers: the batches stay the same.
    `auto`: one per GPU, 2 on a CPU machine; fewer if `prompts_per_step` cannot be divided among them. A worker's microbatch is
    then smaller where its share of a step is."""
    checkpoint_every: Annotated[int, Field(ge=1)] = Field(default=100, json_schema_extra=EXECUTION)
    """Steps between checkpoints. A failure loses at most this many steps."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = Field(default=2, json_schema_extra=EXECUTION)
    """Number of checkpoints to keep; the newest is always kept. With two, training can resume from the other if one is damaged.
    With `validation_rows`, the others are those with the lowest validation loss."""
    validation_rows: Annotated[int, Field(ge=0)] = 0
    """Prompts, the first of the validation split, whose loss is measured at every checkpoint. 0: none."""
    final: Literal["last", "best"] = "last"
    """The checkpoint that becomes the model: the last, or the one with the lowest validation loss (needs `validation_rows`)."""
    max_failures: Annotated[int, Field(ge=0)] = Field(default=3, json_schema_extra=EXECUTION)
    """Maximum consecutive worker failures without a new checkpoint in between. After each, training restarts from the last
    checkpoint. 0: stop at the first failure."""
    profile_steps: Annotated[int, Field(ge=0)] = Field(default=0, json_schema_extra=EXECUTION)
    """Steps to profile with torch's profiler, from the third step on, on the first worker. Output: `profiles/STAGE/`."""

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        share = (self.workers or 1) * self.prompts_per_microbatch
        if self.prompts_per_step % share:
            parts = f"workers {self.workers} x " if self.workers else ""
            total = f" = {share}" if self.workers else ""
            raise ValueError(
                f"prompts_per_step {self.prompts_per_step} does not divide into {parts}"
                f"prompts_per_microbatch {self.prompts_per_microbatch}{total}: "
                f"{self.prompts_per_step} = {share} x {self.prompts_per_step // share} + {self.prompts_per_step % share}"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} exceeds steps {self.steps}")
        if self.final == "best" and not self.validation_rows:
            raise ValueError("final: best needs validation_rows: the validation loss decides which checkpoint is best")
        return self

    @property
    def worker_count(self) -> int:
        """Training workers; those of a CPU machine until the placement sets a number."""
        return self.workers or self._divide(CPU_WORKERS)

    def on(self, gpus: int) -> "TrainingConfig":
        """With a number of workers in place of `auto`, and microbatches that fit. gpus: 0 on a CPU machine."""
        return self if self.workers else self.spread(gpus or CPU_WORKERS)

    def spread(self, processes: int) -> "TrainingConfig":
        """With the most workers, up to `processes`, that divide a step evenly, and the largest microbatch that does so too."""
        workers = self._divide(processes)
        share = self.prompts_per_step // workers
        largest = min(share, self.prompts_per_microbatch)
        microbatch = max(n for n in range(1, largest + 1) if share % n == 0)
        return self.model_copy(update={"workers": workers, "prompts_per_microbatch": microbatch})

    def _divide(self, processes: int) -> int:
        return max(n for n in range(1, processes + 1) if self.prompts_per_step % n == 0)


class ScheduledSamplingConfig(Section):
    """Parallel scheduled sampling (PSS), the paper's baseline against exposure bias."""

    sequences: Annotated[int, Field(ge=1)] = 3
    """Partly sampled copies of each gold (the paper: 3)."""
    probability: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Probability that a token of a copy is replaced by the model's own sample (the paper: 0.5)."""


class MleConfig(Section):
    """Stage `mle`: the baseline. Its prompts, their order, its steps and its schedule are those of `cpo`."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate of the baseline, because the rate that suits CPO's loss need not suit next-token loss. Default:
    `training.learning_rate`. `tuning.learning_rates` finds the best one of each."""
    scheduled_sampling: ScheduledSamplingConfig | None = None
    """`{}` selects PSS with the paper's settings. Default: plain next-token loss."""


class TuningConfig(Section):
    """The learning rates of `cpo` and `mle`: both train once per rate, and each keeps the best on the validation split."""

    learning_rates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Peak learning rates to try, the same for both stages, in place of `training.learning_rate`. The model with the lowest
    validation loss is kept; needs `training.validation_rows`. Each rate costs a whole training. Default: none are tried."""

    @model_validator(mode="after")
    def _check(self) -> "TuningConfig":
        rates = list(self.learning_rates)
        if len(rates) == 1:
            raise ValueError(f"learning_rates {rates}: one rate leaves nothing to choose; set training.learning_rate")
        if len(set(rates)) < len(rates):
            raise ValueError(f"learning_rates {rates} name one rate twice")
        finer = [rate for rate in rates if float(self.trial_name(rate)) != rate]
        if finer:
            raise ValueError(f"learning_rates {finer}: a trial is named by its rate, which may have at most six digits")
        return self

    @property
    def trials(self) -> int:
        """Trainings of each stage."""
        return max(1, len(self.learning_rates))

    @property
    def trial_names(self) -> list[str]:
        """Names of the trials, in the order of the rates."""
        return list(map(self.trial_name, self.learning_rates))

    @staticmethod
    def trial_name(rate: float) -> str:
        """The folder of a trial below `trials/STAGE/`."""
        return f"{rate:g}"


class TrackingConfig(Section):
    """Destinations of training metrics besides `metrics.jsonl`."""

    tensorboard: bool = True
    """Write event files to the run's `tensorboard/`."""
    wandb_project: str | None = None
    """A Weights & Biases project. Needs `pip install wandb`, and the key in WANDB_API_KEY."""
    mlflow_uri: str | None = None
    """An MLflow tracking server or folder. Needs `pip install mlflow-skinny`."""
