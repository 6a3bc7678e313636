"""Who gets which GPUs, and when: the placement of a run, from its configuration and the GPUs that there are.

Every number of it is a key of the configuration, so a file may set it. Nothing here changes a result.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cpo_ray.cluster.cards import Cards
from cpo_ray.config import RunConfig, TrainingConfig
from cpo_ray.config.inference import ALONE
from cpo_ray.errors import ConfigError
from cpo_ray.planning.card_memory import GIB, sampling_memory
from cpo_ray.planning.estimate import with_workers
from cpo_ray.planning.memory import training_memory
from cpo_ray.planning.model_size import ModelSize, describe_model
from cpo_ray.planning.placement_faults import gpu_faults, memory_faults, trainings
from cpo_ray.planning.sampling_placement import (
    USABLE,
    CardSpace,
    SamplingLayout,
    amount,
    count,
    describe_layout,
    lay_out,
    with_layout,
)


@dataclass(frozen=True)
class Placement:
    """A configuration with numbers in place of every `auto`; a line per phase; what cannot fit on this machine."""

    config: RunConfig
    lines: tuple[str, ...]
    faults: tuple[str, ...] = ()


def place(config: RunConfig, cards: Cards, shape: ModelSize | None = None) -> Placement:
    """The placement of a run on `cards`. shape: of its model, None if it is unknown.

    On a cluster nothing is refused: it may grow, and a stage waits for its resources.
    """
    cluster = config.cluster
    gpus = cards.count if cluster.gpus is None else cluster.gpus
    each = cluster.gpus_per_worker
    asked = bool(each) and not cards.local  # what each process gets; the cluster may start machines for it
    if each == 0 or not (gpus or asked):
        return _on_cpus(config, cards, gpus)
    per_worker = each or 1.0
    layout, most = _divide(config, gpus, per_worker, cards, shape)
    space = _space(cards)
    placed = with_workers(config, most)
    sampling = with_layout(placed.sampling, layout, space)
    serving, engines = placed.serving, len(config.evaluated_models) * placed.serving.engine.tensor_parallel
    if serving.in_place is None:
        few = gpus and not asked and engines * serving.min_replicas > gpus
        serving = serving.model_copy(update={"in_place": bool(few)})
    if serving.engine.gpu_memory_utilization is None:
        share = ALONE if space is None else space.alone
        engine = serving.engine.model_copy(update={"gpu_memory_utilization": share})
        serving = serving.model_copy(update={"engine": engine})
    update = {"gpus": gpus or None, "gpus_per_worker": per_worker}
    placed = placed.model_copy(
        update={"cluster": cluster.model_copy(update=update), "sampling": sampling, "serving": serving}
    )
    faults = (*gpu_faults(placed, cards, gpus), *memory_faults(placed, shape, space)) if cards.local else ()
    return Placement(placed, (_headline(cards, gpus, cluster.device), *_lines(placed, cards, shape)), faults)


def read_shape(config: RunConfig) -> ModelSize | None:
    """The size of the run's model by what is on this machine; None for a hub model that is not."""
    tokenizer = config.data.tokenizer
    vocabulary = tokenizer.vocabulary_size if tokenizer.path is None else 50_257  # of a model from scratch
    try:
        return describe_model(config, vocabulary, None, local_only=True)
    except ConfigError:
        return None


def _on_cpus(config: RunConfig, cards: Cards, gpus: int) -> Placement:
    """Everything on the CPU: the engines, scorers and workers that the file asks for, or one of each and two workers."""
    asked = config.cluster.gpus_per_worker
    faults = (f"cluster.gpus_per_worker {asked:g}: this machine has no GPU that PyTorch can use",) if asked else ()
    placed = with_workers(config, 0)
    sampling = placed.sampling.model_copy(update={"in_phases": bool(placed.sampling.in_phases)})
    serving = placed.serving.model_copy(update={"in_place": bool(placed.serving.in_place)})
    cluster = config.cluster.model_copy(update={"gpus": 0, "gpus_per_worker": 0.0})
    placed = placed.model_copy(update={"sampling": sampling, "serving": serving, "cluster": cluster})
    found = "none" if not gpus else f"{gpus}, not used (cluster.gpus_per_worker 0)"
    models = len(config.evaluated_models)
    numbers = sorted({placed.reference.worker_count, placed.training.worker_count})
    workers = " or ".join((*map(str, numbers[:-1]), count(numbers[-1], "training worker")))
    phases = "after each other" if sampling.in_phases else "at once"
    line = (
        f"GPUs: {found}. On the CPU: {workers}; engine, scorer and "
        f"embedder {phases}; then {count(serving.engines(models), 'engine')} for {count(models, 'model')}"
    )
    if not cards.local and not gpus:
        line += ". If the cluster starts machines with GPUs, set cluster.gpus to their number"
    return Placement(placed, (line,), faults)


def _divide(
    config: RunConfig, gpus: int, each: float, cards: Cards, shape: ModelSize | None
) -> tuple[SamplingLayout, int]:
    """The layout of sampling, and the most training workers: of all GPUs, or of those that sampling leaves in a stream."""
    memory = None if shape is None else sampling_memory(config, shape)
    if not config.sampling.stream or not gpus:
        return lay_out(config, gpus, memory, _space(cards)), int(gpus / each)
    engine = config.sampling.engine.tensor_parallel if config.sampling.samples else 0
    if config.training.workers is not None:
        for_samplers = gpus - int(config.training.workers * each)
    else:
        for_samplers = min(max(engine, 1, gpus // 2), engine + 2)
    layout = lay_out(config, max(1, for_samplers), memory, _space(cards))
    return layout, max(1, int((gpus - for_samplers) / each))


def _space(cards: Cards) -> CardSpace | None:
    if cards.memory_gib is None:
        return None
    return CardSpace(cards.memory_gib * GIB, (USABLE * cards.memory_gib - cards.used_gib) * GIB)


def _headline(cards: Cards, gpus: int, device: str) -> str:
    if device == "cpu":
        return f"GPUs: {gpus}, only counted (cluster.device: cpu); everything computes on the CPU"
    if not cards.local:
        return f"GPUs: {gpus or 'as many as the stages wait for'}, on the cluster"
    return f"GPUs: {cards if gpus == cards.count else f'{gpus} of {cards}'}"


def _lines(config: RunConfig, cards: Cards, shape: ModelSize | None) -> Iterator[str]:
    """A line per phase of a placed configuration."""
    sections, each = trainings(config), amount(config.cluster.worker_gpus)
    yield f"reference: {_workers(config.reference, each)}{_estimate('reference', sections, cards, shape)}"
    if not config.sampling.stream:
        yield from describe_layout(config.sampling, streamed=False)
    stages = "cpo" if config.sampling.stream else "cpo, mle"
    yield f"{stages}: {_workers(config.training, each)}{_estimate('cpo', sections, cards, shape)}"
    if config.sampling.stream:
        yield from describe_layout(config.sampling, streamed=True)
    models, serving = len(config.evaluated_models), config.serving
    share = f"{amount(serving.engine.tensor_parallel)} each ({serving.engine.memory_share:.0%} of the memory)"
    turns = f" for {count(models, 'model')} in turn (serving.in_place)" if serving.in_place else ""
    yield f"generation: {count(serving.engines(models), 'engine')}{turns}, {share}"
    if config.reward.model is not None:
        yield f"reward: {each} for each actor"


def _workers(training: TrainingConfig, each: str) -> str:
    prompts = count(training.prompts_per_microbatch, "prompt")
    return f"{count(training.worker_count, 'training worker')}, {each} each, {prompts} at a time"


def _estimate(
    stage: str, sections: dict[str, tuple[TrainingConfig, float]], cards: Cards, shape: ModelSize | None
) -> str:
    """The memory of a training on a card, with a warning if the longest microbatch would not fit."""
    space = _space(cards)
    if shape is None or space is None:
        return ""
    section, tokens = sections[stage]
    total = training_memory(shape, section, section.zero_stage, tokens).total
    text = f"; {total / GIB:.1f} of {space.usable / GIB:.1f} GiB if all texts are of the longest"
    if total <= space.usable:
        return text
    key = "reference" if stage == "reference" else "training"
    remedy = f"{key}.activation_checkpointing: true or a smaller {key}.prompts_per_microbatch needs less"
    return f"{text}: this may not fit; {remedy}"
