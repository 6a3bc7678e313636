"""Estimate what a run needs: rows, tokens, memory per GPU, GPU-hours. Each estimate states its formula and assumptions.

Symbols: N parameters, V vocabulary, D hidden size, I feed-forward width, L layers, W training workers, K candidates,
P prompt tokens, R response tokens (both are means of the run's data, or the configured maxima before it is made).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ray.artifacts import find_artifact
from cpo_ray.cluster.accelerators import DEVICES, Device
from cpo_ray.config import RunConfig
from cpo_ray.errors import ConfigError
from cpo_ray.planning.memory import TrainingMemory, training_memory
from cpo_ray.planning.model_size import ModelSize, describe_model
from cpo_ray.planning.processor import measure_cores
from cpo_ray.planning.work import StageWork, TokenCounts, stage_work


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
        """GPU-hours of all stages, without their starts."""
        return sum(work.gpu_hours for work in self.work)

    @property
    def hours(self) -> float:
        """Wall-clock of all stages, one after another, with their starts."""
        return sum(work.total_hours for work in self.work)

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Wall-clock of each stage that runs the model, with its start; the parts of `sampling` together."""
        seconds: dict[str, float] = {}
        for work in self.work:
            stage = work.stage.partition(":")[0]
            seconds[stage] = seconds.get(stage, 0.0) + 3600 * work.total_hours
        return seconds

    @property
    def start_hours(self) -> float:
        """The starts' part of `hours`."""
        return sum(work.start_hours for work in self.work)

    @property
    def bottleneck(self) -> StageWork:
        """The longest stage, its start included."""
        return max(self.work, key=lambda work: work.total_hours)


def make_plan(
    config: RunConfig,
    gpu: str,
    nodes: int,
    *,
    root: Path | None = None,
    parameters: float | None = None,
    trial: Mapping[str, Any] | None = None,
) -> RunPlan:
    """Estimate a run on `nodes` machines of `gpu`, a key of DEVICES or `cpu`: this machine's cores.

    root: a run directory; if its data stage is done, its data is used. trial: otherwise, the summary of a data stage on some
    of the rows. Without both, prompts and responses are assumed as long as configured.

    Raises ConfigError for a hub model that is not on this machine, unless `parameters` is given, and for more
    training workers than GPUs.
    """
    tokens, vocabulary = measure_data(config, root, trial)
    shape = describe_model(config, vocabulary, parameters)
    device = measure_cores(shape.hidden_size) if gpu == "cpu" else DEVICES[gpu]
    gpus = nodes * device.per_node
    config = with_workers(config, 0 if device.cores else gpus)
    workers = max(config.training.worker_count, config.reference.worker_count)
    if not device.cores and workers > gpus:
        raise ConfigError(f"training.workers {workers} needs as many GPUs, but {nodes} x {device.per_node} = {gpus}")
    microbatch = config.training.prompts_per_microbatch * tokens.group(config)
    quantize = config.adapter.quantize if config.adapter is not None else None
    memory = {
        stage: training_memory(shape, config.training, stage, microbatch, lazy=device.cores, quantize=quantize)
        for stage in range(4)
    }
    return RunPlan(config, device, gpus, shape, tokens, memory, stage_work(config, shape, tokens, device, gpus))


def with_workers(config: RunConfig, gpus: int) -> RunConfig:
    """With numbers of training workers in place of `auto`. gpus: 0 on a CPU machine."""
    return config.model_copy(update={"reference": config.reference.on(gpus), "training": config.training.on(gpus)})


def measure_data(config: RunConfig, root: Path | None, trial: Mapping[str, Any] | None) -> tuple[TokenCounts, int]:
    """Tokens of the run's data, else of the trial, else the configured maxima; and the vocabulary of a trained tokenizer."""
    artifact = find_artifact(root, "data") if root is not None else None
    if artifact is not None:
        summary, origin = artifact.manifest.summary, f"means of {artifact.path}"
    elif trial is not None:
        summary, origin = dict(trial), "means of a sample drawn now"
    else:
        maxima = (config.data.max_prompt_tokens, config.data.max_response_tokens)
        vocabulary = config.data.tokenizer.vocabulary_size if config.data.tokenizer.path is None else 50_257
        return TokenCounts(*maxima, "the configured maxima: an upper bound until the data stage has run"), vocabulary
    means = (summary["train_prompt_tokens"], summary["train_response_tokens"])
    return TokenCounts(*means, origin), int(summary["vocabulary"])
