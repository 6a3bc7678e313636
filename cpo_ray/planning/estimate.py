"""Estimate what a run needs: rows, tokens, memory per GPU, GPU-hours. Each estimate states its formula and assumptions.

Symbols: N parameters, V vocabulary, D hidden size, I feed-forward width, L layers, W training workers, K candidates,
P prompt tokens, R response tokens (both are means of the run's data, or the configured maxima before it is made).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import find_artifact
from cpo_ray.cluster.accelerators import UTILIZATION, Device, find_device
from cpo_ray.config import ModelConfig, RunConfig, TrainingConfig
from cpo_ray.errors import ConfigError

BYTES = {"fp32": 4, "bf16": 2}
LM_HEAD_BYTES = 2 * 4 * 2**23  # a chunk of float32 logits and its gradient, see objective/logprobs.py


@dataclass(frozen=True)
class ModelSize:
    """A model's size. `hidden_size`, `layers` and `vocabulary` matter only for activations. origin: where it was read."""

    parameters: int
    hidden_size: int
    layers: int
    vocabulary: int
    origin: str


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of a prompt and of a response, EOS included. origin: where they were read."""

    prompt: float
    response: float
    origin: str

    def group(self, config: RunConfig) -> float:
        """Tokens to compute for one group: the prompt once, each candidate once, truncations nothing.

        P + R * (K - truncations): a truncation is a prefix of the gold, which is computed anyway.
        """
        return self.prompt + self.response * (config.candidates - config.sampling.negatives.truncation)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one GPU during training."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """The sum, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class StageWork:
    """Tokens and FLOPs of a stage. hours: wall-clock on `gpus` GPUs."""

    stage: str
    tokens: float
    flops: float
    gpus: int
    hours: float

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.hours * self.gpus


@dataclass(frozen=True)
class RunPlan:
    """The whole estimate."""

    config: RunConfig
    device: Device
    gpus: int
    shape: ModelSize
    tokens: TokenCounts
    memory: dict[int, TrainingMemory]  # by ZeRO stage, of the training section
    work: tuple[StageWork, ...]

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of all stages."""
        return sum(work.gpu_hours for work in self.work)

    @property
    def bottleneck(self) -> StageWork:
        """The longest stage."""
        return max(self.work, key=lambda work: work.hours)


def make_plan(
    config: RunConfig, gpu: str, nodes: int, *, root: Path | None = None, parameters: float | None = None
) -> RunPlan:
    """Estimate a run on `nodes` machines of `gpu`. `root`: a run directory; if its data stage is done, its data is used.

    Raises ConfigError for a hub model that is not on this machine, unless `parameters` is given, and for more
    training workers than GPUs.
    """
    device = find_device(gpu)
    gpus = nodes * device.per_node
    workers = max(config.training.workers, config.reference.workers)
    if gpu != "cpu" and workers > gpus:
        raise ConfigError(f"training.workers {workers} needs as many GPUs, but {nodes} x {device.per_node} = {gpus}")
    tokens = measure_tokens(config, root)
    shape = describe_model(config, root, parameters)
    group = tokens.group(config)
    memory = {
        stage: training_memory(shape, config.training, stage, config.training.prompts_per_microbatch * group)
        for stage in range(4)
    }
    return RunPlan(config, device, gpus, shape, tokens, memory, stage_work(config, shape, tokens, device, gpus))


def measure_tokens(config: RunConfig, root: Path | None) -> TokenCounts:
    """Mean tokens of the run's training rows, or the configured maxima if the data stage has not run."""
    artifact = find_artifact(root, "data") if root is not None else None
    if artifact is None:
        maxima = (config.data.max_prompt_tokens, config.data.max_response_tokens)
        return TokenCounts(*maxima, "the configured maxima: an upper bound until the data stage has run")
    summary = artifact.manifest.summary
    return TokenCounts(summary["train_prompt_tokens"], summary["train_response_tokens"], f"means of {artifact.path}")


def count_parameters(model: ModelConfig, vocabulary: int) -> int:
    """Parameters N of a model made from scratch.

    Llama: V*D*(1 or 2) + L*(4*D*D + 3*D*I + 2*D) + D.
    GPT-2: V*D*(1 or 2) + context*D + L*(4*D*D + 2*D*I + 9*D + I) + 2*D, with biases and two norms per block.
    """
    d, i, layers = model.hidden_size, model.intermediate_size, model.layers
    embeddings = vocabulary * d * (1 if model.tie_embeddings else 2)
    if model.architecture == "llama":
        return embeddings + layers * (4 * d * d + 3 * d * i + 2 * d) + d
    return embeddings + model.context * d + layers * (4 * d * d + 2 * d * i + 9 * d + i) + 2 * d


def describe_model(config: RunConfig, root: Path | None, parameters: float | None) -> ModelSize:
    """The size of the model that the run starts from.

    Raises ConfigError for a hub id that is not on this machine, unless `parameters` is given: then depth and width are
    guessed from D = 128*L and N = 12*L*D*D.
    """
    model = config.model
    if model.path is None:
        vocabulary = _vocabulary(config, root)
        counted = count_parameters(model, vocabulary)
        return ModelSize(counted, model.hidden_size, model.layers, vocabulary, "the configured shape")
    if parameters is not None:
        layers = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
        return ModelSize(
            round(parameters), 128 * layers, layers, 50_000, "--parameters; its depth and width are guessed from it"
        )
    return _read_hub_config(model.path)


def _vocabulary(config: RunConfig, root: Path | None) -> int:
    artifact = find_artifact(root, "data") if root is not None else None
    if artifact is not None:
        return int(artifact.manifest.summary["vocabulary"])
    return config.data.tokenizer.vocabulary_size if config.data.tokenizer.path is None else 50_257


def _read_hub_config(path: str) -> ModelSize:
    """Count the parameters of a local or cached model on PyTorch's meta device: no weights, no network."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config: Any = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        raise ConfigError(
            f"model.path {path} is not on this machine, so its size is unknown: give --parameters N (e.g. 1.5e9)"
        ) from None
    with torch.device("meta"):
        counted = AutoModelForCausalLM.from_config(config).num_parameters()
    return ModelSize(counted, config.hidden_size, config.num_hidden_layers, config.vocab_size, f"the config of {path}")


def training_memory(shape: ModelSize, training: TrainingConfig, zero_stage: int, tokens: float) -> TrainingMemory:
    """Bytes per GPU. tokens: of one microbatch.

    With b bytes per number (4 in fp32, 2 in bf16) and W workers: weights b*N, gradients b*N, Adam's two moments 8*N and,
    in bf16, a float32 copy of the weights 4*N. ZeRO 1 divides the optimizer by W, 2 also the gradients, 3 also the weights.
    Activations: 17*b*D bytes per token and layer (Korthikanti et al. 2022, without the attention matrix and without
    recomputation) plus a chunk of logits. The reference needs no memory: its log-probs are in the groups.
    """
    b, n, w = BYTES[training.precision], shape.parameters, training.workers
    optimizer = 8 * n + (4 * n if training.precision == "bf16" else 0)
    return TrainingMemory(
        weights=b * n / (w if zero_stage >= 3 else 1),
        gradients=b * n / (w if zero_stage >= 2 else 1),
        optimizer=optimizer / (w if zero_stage >= 1 else 1),
        activations=17 * b * shape.hidden_size * shape.layers * tokens + LM_HEAD_BYTES,
    )


def stage_work(
    config: RunConfig, shape: ModelSize, tokens: TokenCounts, device: Device, gpus: int
) -> tuple[StageWork, ...]:
    """FLOPs and hours of every stage that runs the model: 6*N per trained token, 2*N per scored or generated one.

    Hours = FLOPs / (GPUs * peak * utilization), utilization as in `accelerators.UTILIZATION`. Attention's own FLOPs and
    start-up times are left out, so short runs take longer than this.
    """
    n, negatives, group = shape.parameters, config.sampling.negatives, tokens.group(config)
    rows = min(config.sampling.rows or config.data.train_rows, config.data.train_rows)
    available = config.data.test_rows if config.generation.split == "test" else config.data.validation_rows
    answers = min(config.generation.rows or available, available)
    answers *= len(config.evaluated_models) * len(config.generation.decodings)
    sequence = tokens.prompt + tokens.response
    engines = config.serving.engines(len(config.evaluated_models)) * config.serving.engine.tensor_parallel

    def work(stage: str, count: float, kind: str, precision: str, used: int) -> StageWork:
        flops = (6 if kind == "training" else 2) * n * count
        speed = used * device.flops(precision) * UTILIZATION[kind]
        return StageWork(stage, count, flops, used, flops / speed / 3600)

    def train(stage: str, section: TrainingConfig, row: float) -> StageWork:
        count = section.steps * section.prompts_per_step * row
        return work(stage, count, "training", section.precision, min(section.workers, gpus))

    precision = config.training.precision
    return (
        train("reference", config.reference, sequence),
        work(
            "sampling: autoregressive", rows * negatives.autoregressive * tokens.response, "generation", precision, gpus
        ),
        work("sampling: scoring", rows * (group + sequence), "scoring", precision, gpus),
        train("cpo", config.training, group),
        train("mle", config.training, sequence),
        work("generation", answers * tokens.response, "generation", precision, min(gpus, engines)),
    )
