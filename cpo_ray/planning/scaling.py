"""Estimate a run on more machines: how long it takes, what limits it, what it costs.

Two things limit the speed-up. A training step has `prompts_per_step` prompts, so at most that many workers can share it.
And its gradients cross the network: in each step every node of the ring sends and receives

    volume = 2 * (W - 1) / W * b * N bytes        ZeRO 0, 1, 2: an all-reduce, or a reduce-scatter and an all-gather
    volume = 3 * (W - 1) / W * b * N * M bytes    ZeRO 3: the weights twice and the gradients once, per microbatch

with W workers, b bytes per number, N parameters, M microbatches per step. No overlap of communication and computation is
assumed, so the estimate is an upper bound.
"""

from dataclasses import dataclass

from cpo_ray.config import RunConfig, TrainingConfig
from cpo_ray.planning.activations import BYTES
from cpo_ray.planning.estimate import RunPlan
from cpo_ray.planning.work import StageWork, stage_work

NETWORK_UTILIZATION = 0.6  # share of the network cards' total that NCCL reaches in large all-reduces
MACHINES = (2, 8, 64)


@dataclass(frozen=True)
class ScaledRun:
    """The run on `machines`. hours: wall-clock, start-up included; traffic: bytes per machine and CPO step."""

    machines: int
    workers: int
    hours: float
    network_hours: float
    traffic: float
    bottleneck: str
    why: str

    @property
    def machine_hours(self) -> float:
        """Machines times hours, which is what a cloud charges."""
        return self.machines * self.hours


def scale(plan: RunPlan, machines: int) -> ScaledRun:
    """The planned run on `machines` of the same kind, with as many training workers as the batch allows."""
    gpus = machines * plan.device.per_node
    config = spread(plan.config, gpus)
    work = stage_work(config, plan.shape, plan.tokens, plan.device, gpus)
    trials = {"reference": 1, "cpo": config.rounds * config.tuning.trials, "mle": config.tuning.trials}
    network = {name: trials[name] * _network_hours(section, plan) for name, section in _trainings(config).items()}
    hours = {item.stage: item.total_hours + network.get(item.stage, 0.0) for item in work}
    slowest = max(work, key=lambda item: hours[item.stage])
    return ScaledRun(
        machines=machines,
        workers=config.training.worker_count,
        hours=sum(hours.values()),
        network_hours=sum(network.values()),
        traffic=step_traffic(config.training, plan),
        bottleneck=slowest.stage,
        why=_why(slowest, config, network.get(slowest.stage, 0.0), gpus),
    )


def spread(config: RunConfig, gpus: int) -> RunConfig:
    """The configuration with the most workers on `gpus` that divide its batches evenly, and matching microbatches."""
    return config.model_copy(
        update={"reference": config.reference.spread(gpus), "training": config.training.spread(gpus)}
    )


def step_traffic(training: TrainingConfig, plan: RunPlan) -> float:
    """Bytes that one machine sends in one optimizer step; 0 if one machine holds all workers."""
    workers = training.worker_count
    if workers <= plan.device.per_node:
        return 0.0
    weights, gradients = (BYTES[training.precision] * n for n in (plan.shape.parameters, plan.shape.trained))
    amount = 2.0 * gradients
    if training.zero_stage == 3:  # the weights of the forward pass, again those of the backward pass, and the gradients
        microbatches = training.prompts_per_step / (workers * training.prompts_per_microbatch)
        amount = microbatches * (2.0 * weights + gradients)
    return amount * (workers - 1) / workers


def _trainings(config: RunConfig) -> dict[str, TrainingConfig]:
    return {"reference": config.reference, "cpo": config.training, "mle": config.mle_training}


def _network_hours(training: TrainingConfig, plan: RunPlan) -> float:
    speed = plan.device.network_gbit * 1e9 / 8 * NETWORK_UTILIZATION
    return training.steps * step_traffic(training, plan) / speed / 3600


def _why(work: StageWork, config: RunConfig, network: float, gpus: int) -> str:
    """What limits the slowest stage."""
    if network > work.hours:
        return "sending the gradients over the network"
    trainings = _trainings(config)
    if work.stage in trainings and work.gpus < gpus:
        prompts = trainings[work.stage].prompts_per_step
        return f"{prompts} prompts per step keep {work.gpus} of {gpus} GPUs busy"
    if work.gpus < gpus:
        return f"one engine per model: {work.gpus} of {gpus} GPUs"
    return "arithmetic" if work.stage != "generation" else "reading the weights for every token"
