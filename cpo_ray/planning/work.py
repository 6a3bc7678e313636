"""Tokens, FLOPs, hours and start-up time of every stage that runs the model."""

from dataclasses import dataclass

from cpo_ray.cluster.accelerators import UTILIZATION, Device
from cpo_ray.config import RunConfig, TrainingConfig
from cpo_ray.planning.model_size import ModelSize

START_UP_H = 0.1  # hours per stage that needs GPUs: machines, processes, weights, engines

# Measured in the demo on two cores (1.4 M parameters, 4 blocks):
CPU_UTILIZATION = {"training": 0.4, "scoring": 0.4, "generation": 0.4}
MICROBATCH_S = 0.04  # per microbatch and worker: launching small operations, Ray's and DeepSpeed's share
GROUP_S = 0.005  # per group: Ray Data, drawing, embedding the candidates, ranking
ANSWER_S = 0.03  # per answer: a request through Ray Serve
WORKER_START_S = 30  # of one core: a training worker's imports, model and engine
ENGINE_START_S = 44  # of one core: an engine's imports, model and warm-up
SHORTEST_START_S = 15  # however many cores there are


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
class StageWork:
    """Tokens and FLOPs of a stage. hours: wall-clock on `gpus` GPUs, after a start of `start_hours`."""

    stage: str
    tokens: float
    flops: float
    gpus: int
    hours: float
    start_hours: float

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs, without the start."""
        return self.hours * self.gpus

    @property
    def total_hours(self) -> float:
        """Wall-clock with the start."""
        return self.hours + self.start_hours


@dataclass(frozen=True)
class Machine:
    """Devices of one kind, and what they take besides arithmetic."""

    device: Device
    gpus: int

    @property
    def utilization(self) -> dict[str, float]:
        """Fraction of peak FLOP/s per kind of work."""
        return CPU_UTILIZATION if self.device.cores else UTILIZATION

    def hours(self, kind: str, flops: float, precision: str, used: int, overhead_s: float) -> float:
        """Wall-clock of `flops` on `used` devices. overhead_s: besides, on CPU cores; small beside a GPU's work."""
        speed = used * self.device.flops(precision) * self.utilization[kind]
        return (flops / speed + (overhead_s if self.device.cores else 0.0)) / 3600

    def start_hours(self, processes: int, seconds: float) -> float:
        """Wall-clock until `processes` have started that take `seconds` of a CPU core each, at once on all cores."""
        if not processes:
            return 0.0
        if not self.device.cores:
            return START_UP_H
        return max(SHORTEST_START_S, seconds * processes / self.gpus) / 3600


def stage_work(
    config: RunConfig, shape: ModelSize, tokens: TokenCounts, device: Device, gpus: int
) -> tuple[StageWork, ...]:
    """FLOPs and hours of every stage that runs the model: 6*N per trained token, 2*N per scored or generated one. With an
    adapter, 4*N per trained token: frozen weights need no gradient.

    Hours = FLOPs / (GPUs * peak * utilization), utilization as in `accelerators.UTILIZATION`. Attention's own FLOPs are left
    out. On CPU cores, where models are small, the time per microbatch, group and answer is added. `cpo` and `mle` train once
    per rate of `tuning.learning_rates`. The sampling of all `rounds` is in the lines `sampling`, their training in `cpo`.
    """
    n, group, rounds = shape.parameters, tokens.group(config), config.rounds
    rows = rounds * min(config.sampling.rows or config.data.rows("train"), config.data.rows("train"))
    available = config.data.rows(config.generation.split)
    answers = min(config.generation.rows or available, available)
    answers *= len(config.evaluated_models) * len(config.generation.decodings)
    sequence = tokens.prompt + tokens.response
    models = config.serving.engines(len(config.evaluated_models))
    engines = models * config.serving.engine.tensor_parallel
    machine, precision = Machine(device, gpus), config.training.precision

    def train(stage: str, section: TrainingConfig, row: float, trials: int = 1) -> StageWork:
        prompts, used = trials * section.steps * section.prompts_per_step, min(section.worker_count, gpus)
        count, microbatches = prompts * row, prompts / (section.worker_count * section.prompts_per_microbatch)
        whole = config.adapter is None or (stage == "reference" and config.model.path is None)
        flops = (6 if whole else 4) * n * count
        hours = machine.hours("training", flops, section.precision, used, microbatches * MICROBATCH_S)
        start = trials * machine.start_hours(section.worker_count, WORKER_START_S)
        return StageWork(stage, count, flops, used, hours, start)

    def run(
        kind: str, stage: str, count: float, used: int, overhead_s: float, processes: int, times: int = 1
    ) -> StageWork:
        hours = machine.hours(kind, 2 * n * count, precision, used, overhead_s)
        start = times * machine.start_hours(processes if count else 0, ENGINE_START_S)
        return StageWork(stage, count, 2 * n * count, used, hours, start)

    scorers = (0 if device.cores else 1, rounds)
    autoregressive = rows * config.sampling.samples * tokens.response
    return (
        train("reference", config.reference, sequence),
        run("generation", "sampling: autoregressive", autoregressive, gpus, 0.0, 1, rounds),
        run("scoring", "sampling: scoring", rows * (group + sequence), gpus, rows * GROUP_S, *scorers),
        train("cpo", config.training, group, config.tuning.trials * rounds),
        train("mle", config.mle_training, sequence, config.tuning.trials),
        run("generation", "generation", answers * tokens.response, min(gpus, engines), answers * ANSWER_S, models),
    )
