"""One frozen model per stage; a run is one YAML file.

Every key is documented by the string under it: `docs/configuration.md` is generated from here. Unknown keys and values
out of bounds are errors that name the key; nothing is rounded or guessed.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cpo_ray.records import NEGATIVE_KINDS

# Marks a key that says how fast or where, never what: changing it makes no finished stage stale.
EXECUTION: dict[str, Any] = {"execution": True}


class Section(BaseModel):
    """A part of the configuration: immutable, closed to unknown keys, documented in place."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class TokenizerConfig(Section):
    """The tokenizer: trained on the training split, or loaded."""

    path: str | None = None
    """A directory (a Hugging Face tokenizer, or GPT-2 style `*vocab.json` and `*merges.txt`) or a hub id.
    Without it a byte-level BPE is trained on the training split."""
    vocabulary_size: Annotated[int, Field(ge=300, le=500_000)] = 1024
    """Size of the trained vocabulary. Not used with `path`."""


class DataConfig(Section):
    """Stage `data`: read, split, cut, tokenize."""

    source: Literal["synthetic", "dolly"] = "synthetic"
    """`synthetic` is embedded and needs no file; `dolly` reads databricks-dolly-15k's JSONL from `path`."""
    path: Path | None = None
    """The data file. Needed by every source but `synthetic`."""
    train_rows: Annotated[int, Field(ge=1)] = 3000
    """Rows of the training split (the paper: 7505 of Dolly)."""
    validation_rows: Annotated[int, Field(ge=0)] = 200
    """Rows held out for tuning. They come out of the training rows' pool, never out of the test rows."""
    test_rows: Annotated[int, Field(ge=1)] = 500
    """Rows of the test split (the paper: 7506 of Dolly). The same prompt never falls on two sides."""
    template: str = "{instruction}\n{context}\n"
    """The prompt, with `{instruction}` and `{context}`. A row without context loses the line that holds `{context}`."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How text becomes tokens."""
    max_prompt_tokens: Annotated[int, Field(ge=4)] = 192
    """A longer prompt keeps its last `max_prompt_tokens` tokens. Such rows are counted."""
    max_response_tokens: Annotated[int, Field(ge=2)] = 64
    """A longer response keeps its first `max_response_tokens - 1` tokens and EOS. Such rows are counted."""
    on_bad_row: Literal["error", "quarantine"] = "error"
    """A malformed or empty row stops the stage, or goes to `data/quarantine.jsonl` with its line number and a count."""

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.source != "synthetic" and self.path is None:
            raise ValueError(f"source: {self.source} needs data.path (for instance --set data.path=/data/dolly.jsonl)")
        if "{instruction}" not in self.template:
            raise ValueError("template must contain {instruction}")
        return self


class ModelConfig(Section):
    """The model that the reference starts from: made from scratch, or loaded."""

    path: str | None = None
    """A Hugging Face directory or hub id (safetensors). Without it a model is initialised from the fields below."""
    architecture: Literal["llama", "gpt2"] = "llama"
    """Shape of a model made from scratch."""
    hidden_size: Annotated[int, Field(ge=16)] = 160
    """Width of the residual stream."""
    layers: Annotated[int, Field(ge=1)] = 4
    """Transformer blocks."""
    heads: Annotated[int, Field(ge=1)] = 5
    """Attention heads; `hidden_size / heads` must be one of vLLM's head sizes (32, 64, 80, 96, 112, 128, ...)."""
    intermediate_size: Annotated[int, Field(ge=16)] = 448
    """Width of the feed-forward block."""
    context: Annotated[int, Field(ge=32)] = 256
    """Positions. Prompt and response together must fit."""
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
    """How a model is trained, whatever the loss. CPO and continued MLE share one section: same steps, same schedule."""

    steps: Annotated[int, Field(ge=1)] = 300
    """Optimizer steps."""
    prompts_per_step: Annotated[int, Field(ge=1)] = 64
    """The batch size: prompts per optimizer step over all workers, each with its K candidates (the paper: 64)."""
    prompts_per_microbatch: Annotated[int, Field(ge=1)] = 16
    """Prompts per forward and backward pass of one worker. Lower it when memory runs out."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Peak learning rate of AdamW (the paper: 1e-5)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW's decoupled weight decay (the paper: 0.05)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's averages of the gradient and of its square. A short run from scratch learns faster with (0.9, 0.95)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """From the peak down to `final_learning_rate` after the warm-up."""
    final_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Where the schedule ends, as a fraction of the peak."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this global norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the model. Log-prob sums and losses are float32 either way."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO: what is partitioned over the workers (0 nothing, 1 optimizer, 2 + gradients, 3 + parameters)."""
    workers: Annotated[int, Field(ge=1)] = 2
    """Training workers, one process each."""
    checkpoint_every: Annotated[int, Field(ge=1)] = Field(default=100, json_schema_extra=EXECUTION)
    """Steps between checkpoints. At most these many steps are lost to a fault."""
    max_failures: Annotated[int, Field(ge=0)] = Field(default=3, json_schema_extra=EXECUTION)
    """Worker failures after which training gives up instead of restarting from the last checkpoint."""

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        share = self.workers * self.prompts_per_microbatch
        if self.prompts_per_step % share:
            raise ValueError(
                f"prompts_per_step {self.prompts_per_step} does not divide into workers {self.workers} x "
                f"prompts_per_microbatch {self.prompts_per_microbatch} = {share}: "
                f"{self.prompts_per_step} = {share} x {self.prompts_per_step // share} + {self.prompts_per_step % share}"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} exceeds steps {self.steps}")
        return self


class ObjectiveConfig(Section):
    """The CPO loss (the paper's equations 1 and 2)."""

    beta: Annotated[float, Field(gt=0)] = 5.0
    """How strongly the policy is held to the reference (the paper: 5)."""
    ranked: bool = True
    """Plackett-Luce over all K by rank (equation 2), or only the gold against the rest (equation 1)."""
    mle_weight: Annotated[float, Field(ge=0)] = 0.0
    """`alpha` of the joint loss `alpha * MLE + CPO`; 0 is CPO alone."""


class NegativeCounts(Section):
    """Negatives per prompt and kind. Their sum is K - 1 (the paper's MixN: 3 batch, 5 meanfield, 3 truncation)."""

    autoregressive: Annotated[int, Field(ge=0)] = 0
    """Sampled from the reference by vLLM."""
    batch: Annotated[int, Field(ge=0)] = 3
    """Other prompts' responses."""
    meanfield: Annotated[int, Field(ge=0)] = 5
    """The gold with a share of its tokens resampled independently from the reference."""
    truncation: Annotated[int, Field(ge=0)] = 3
    """The gold cut short."""

    @model_validator(mode="after")
    def _check(self) -> "NegativeCounts":
        if self.total == 0:
            raise ValueError("K = 1: at least one negative per prompt is needed (K >= 2)")
        return self

    @property
    def total(self) -> int:
        """K - 1."""
        return sum(getattr(self, kind, 0) for kind in NEGATIVE_KINDS)


class EngineConfig(Section):
    """The vLLM engine, in sampling and in serving."""

    kv_cache_gib: Annotated[float, Field(gt=0)] = Field(default=1.0, json_schema_extra=EXECUTION)
    """KV cache on a CPU machine, GiB. On GPUs vLLM takes what `gpu_memory_utilization` leaves."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(default=0.85, json_schema_extra=EXECUTION)
    """Share of each GPU's memory that vLLM may take."""
    tensor_parallel: Annotated[int, Field(ge=1)] = Field(default=1, json_schema_extra=EXECUTION)
    """GPUs per engine."""
    max_sequences: Annotated[int, Field(ge=1)] = Field(default=256, json_schema_extra=EXECUTION)
    """Sequences decoded at once."""


class SamplingConfig(Section):
    """Stage `sampling`: negatives, reference log-probs, ranks."""

    rows: Annotated[int, Field(ge=2)] | None = None
    """Make groups for the first `rows` training rows only. Default: all."""
    negatives: NegativeCounts = NegativeCounts()
    """How many of each kind."""
    top_k: Annotated[int, Field(ge=1)] = 50
    """Top-k of autoregressive negatives (the paper: 50)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of autoregressive negatives."""
    meanfield_fraction: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of the gold's tokens that a meanfield negative resamples (the paper: 0.15). At least one, never EOS."""
    batch_rows: Annotated[int, Field(ge=2)] = 64
    """Prompts that exchange responses as batch negatives: consecutive rows of the training split."""
    shard_rows: Annotated[int, Field(ge=2)] = Field(default=256, json_schema_extra=EXECUTION)
    """Prompts per shard of the groups artifact. A killed run continues with the missing shards."""
    embedder: str = "minilm"
    """What ranks: `minilm` (all-MiniLM-L6-v2, bundled), a sentence-transformers directory, or a hub id."""
    engine: EngineConfig = EngineConfig()
    """The engine of autoregressive negatives."""


class MergingConfig(Section):
    """Stage `merging`: the weight-space ensemble `theta = alpha * theta_MLE + (1 - alpha) * theta_CPO`."""

    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.3, 0.7)
    """One merged model per alpha (the paper: 0.1, 0.3, 0.5, 0.7, 0.9)."""

    @model_validator(mode="after")
    def _check(self) -> "MergingConfig":
        names = [self.model_name(alpha) for alpha in self.alphas]
        if len(set(names)) != len(names):
            raise ValueError(f"alphas {list(self.alphas)} name one model twice: {names}")
        return self

    @staticmethod
    def model_name(alpha: float) -> str:
        """The merged model's directory and its name at the endpoint."""
        return f"merged-{alpha:.2f}"


class ServingConfig(Section):
    """Ray Serve: every model of the run behind one OpenAI-compatible endpoint."""

    host: str = Field(default="127.0.0.1", json_schema_extra=EXECUTION)
    """Where to listen. Anything but loopback needs a key from the environment."""
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=0, json_schema_extra=EXECUTION)
    """0 takes a free port."""
    key_variable: str = Field(default="CPO_RAY_API_KEY", json_schema_extra=EXECUTION)
    """Environment variable with the endpoint's key. Unset, a local run makes a key for itself."""
    start_timeout_s: Annotated[float, Field(gt=0)] = Field(default=600.0, json_schema_extra=EXECUTION)
    """How long the engines may take to start."""
    engine: EngineConfig = EngineConfig()
    """The engine of every replica."""


class DecodingConfig(Section):
    """How answers are generated."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """-1 is the whole vocabulary."""


class GenerationConfig(Section):
    """Stage `generation`: every model answers the test prompts through the endpoint."""

    split: Literal["test", "validation"] = "test"
    """Tune on `validation`; look at `test` once."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """The first `rows` rows of the split (the paper: 1000). Default: all."""
    models: tuple[str, ...] | None = None
    """Which models answer. Default: `reference`, `mle`, `cpo` and every merged one (`merged-0.30`)."""
    decodings: dict[str, DecodingConfig] = {"greedy": DecodingConfig()}
    """Name to settings. The first is the one that the summary table shows."""
    concurrency: Annotated[int, Field(ge=1)] = Field(default=32, json_schema_extra=EXECUTION)
    """Requests under way at once."""

    @model_validator(mode="after")
    def _check(self) -> "GenerationConfig":
        if not self.decodings:
            raise ValueError("decodings needs at least one entry, for instance {greedy: {temperature: 0}}")
        return self


class JudgeConfig(Section):
    """Stage `judging`: pairwise, against the ground truth, by any OpenAI-compatible model."""

    url: str = "oracle"
    """Base URL of an OpenAI-compatible API (ending in /v1), or `oracle`: a local endpoint that knows the test rows' answers."""
    model: str = "oracle"
    """The judge's model name."""
    key_variable: str = Field(default="CPO_RAY_JUDGE_KEY", json_schema_extra=EXECUTION)
    """Environment variable with the judge's key. The key itself never stands in a file."""
    template: Literal["dolly", "wiki"] = "dolly"
    """The paper's query templates, A.3."""
    order: Literal["both", "paper"] = "both"
    """Ask in both orders (a flip is a tie, and counted), or once in random order as the paper did."""
    concurrency: Annotated[int, Field(ge=1)] = Field(default=16, json_schema_extra=EXECUTION)
    """Requests under way at once."""
    retries: Annotated[int, Field(ge=0)] = Field(default=6, json_schema_extra=EXECUTION)
    """Tries after the first for 429, 5xx and dropped connections, with jitter."""
    max_invalid_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Answers that are neither A nor B beyond this share fail the stage."""


class MauveConfig(Section):
    """Stage `mauve`: generated against real continuations."""

    embedder: str = "minilm"
    """The featurizer, as in `sampling.embedder`."""
    seeds: Annotated[int, Field(ge=1)] = 3
    """Runs of MAUVE's clustering; mean and deviation are reported."""
    minimum_rows: Annotated[int, Field(ge=2)] = 200
    """Refuse to compute on fewer rows: MAUVE is biased on few samples."""


class ClusterConfig(Section):
    """Where it runs. Nothing here changes a result."""

    address: str | None = None
    """A Ray cluster's address, or `auto`. Default: what RAY_ADDRESS says, else a cluster of its own on this machine, on
    loopback, ended with the run."""
    local_cpus: Annotated[int, Field(ge=1)] = 8
    """Logical CPUs of the cluster of its own. Most actors wait for each other, so more than the cores is right."""
    object_store_gib: Annotated[float, Field(gt=0)] = 1.0
    """Object store of the cluster of its own."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs of each training worker, scorer and embedder; 0 on a CPU machine. Where it is not 0, an engine takes
    `tensor_parallel` GPUs."""
    threads_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPU threads of each training worker."""


class RunConfig(Section):
    """A run from start to finish."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """The run's name; its directory is `runs/<name>` unless --run-dir says otherwise."""
    seed: Annotated[int, Field(ge=0)] = 17
    """Every draw is seeded by (seed, row id, kind, index)."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    reference: TrainingConfig = TrainingConfig()
    """Stage `reference`: MLE from `model` (the paper: 2000 steps). Anneal it: else any continued training looks like a gain."""
    sampling: SamplingConfig = SamplingConfig()
    training: TrainingConfig = TrainingConfig()
    """Stages `cpo` and `mle`, both continued from the reference."""
    objective: ObjectiveConfig = ObjectiveConfig()
    merging: MergingConfig = MergingConfig()
    serving: ServingConfig = ServingConfig()
    generation: GenerationConfig = GenerationConfig()
    judge: JudgeConfig = JudgeConfig()
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
        if self.sampling.negatives.batch >= self.sampling.batch_rows:
            raise ValueError(
                f"sampling.negatives.batch {self.sampling.negatives.batch} needs more than that many rows to draw from, "
                f"but sampling.batch_rows is {self.sampling.batch_rows}"
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
        """Names of all models that the run makes, in the order of the tables."""
        return ("reference", "mle", "cpo", *(self.merging.model_name(alpha) for alpha in self.merging.alphas))

    @property
    def evaluated_models(self) -> tuple[str, ...]:
        """Those that answer and are judged."""
        return self.generation.models or self.models


def stage_inputs(section: BaseModel) -> dict[str, Any]:
    """A section without its execution-only keys, as JSON: what a stage's result depends on."""
    inputs: dict[str, Any] = {}
    for key, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("execution"):
            continue
        value = getattr(section, key)
        inputs[key] = stage_inputs(value) if isinstance(value, Section) else section.model_dump(mode="json")[key]
    return inputs
