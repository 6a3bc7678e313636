"""What cannot fit on a machine, with the arithmetic: more GPUs than it has, or more memory than its cards have."""

from collections.abc import Iterator

from cpo_ray.cluster.cards import Cards
from cpo_ray.config import RunConfig, TrainingConfig
from cpo_ray.planning.activations import BYTES
from cpo_ray.planning.card_memory import CONTEXT, GIB
from cpo_ray.planning.memory import training_memory
from cpo_ray.planning.model_size import ModelSize
from cpo_ray.planning.sampling_placement import CardSpace, amount, count


def trainings(config: RunConfig) -> dict[str, tuple[TrainingConfig, float]]:
    """Stage -> its section, and the tokens of its longest microbatch."""
    prompt, response = config.data.max_prompt_tokens, config.data.max_response_tokens
    group = prompt + response * (config.candidates - config.sampling.negatives.truncation)
    sections = {"reference": (config.reference, prompt + response), "cpo": (config.training, group)}
    return {name: (section, section.prompts_per_microbatch * tokens) for name, (section, tokens) in sections.items()}


def gpu_faults(config: RunConfig, cards: Cards, gpus: int) -> Iterator[str]:
    """Stages of a placed configuration that need more than `gpus` GPUs."""
    has, each = f"this machine has {amount(gpus)}", config.cluster.worker_gpus
    if gpus > cards.count and config.cluster.device == "cuda":
        yield (
            f"cluster.gpus {gpus}: this machine has {cards.count} that PyTorch can use. To try a placement without them: "
            "cluster.device: cpu"
        )
    for name in ("reference", "training"):
        workers = getattr(config, name).worker_count
        if workers * each > gpus:
            yield (
                f"{name}.workers {workers} x {each:g} GPU each = {workers * each:g} GPUs, and {has}. Leave out {name}.workers "
                "for as many as there are GPUs"
            )
    yield from _sampling_faults(config, gpus, has)
    serving, cards_each = config.serving, config.serving.engine.tensor_parallel
    engines = serving.engines(len(config.evaluated_models))
    if engines * cards_each > gpus:
        smaller = "A smaller serving.engine.tensor_parallel needs less"
        remedy = smaller if serving.in_place else "serving.in_place: true needs one engine for all models"
        yield (
            f"stage generation: {count(engines, 'engine')} x serving.engine.tensor_parallel {cards_each} = "
            f"{engines * cards_each} GPUs, and {has}. {remedy}"
        )


def _sampling_faults(config: RunConfig, gpus: int, has: str) -> Iterator[str]:
    """More GPUs than there are, for engines, scorers and embedders at once, in a stream with the training workers."""
    sampling = config.sampling
    engine, scorer, ranker = (
        (pool.gpus or 0.0) * pool.minimum for pool in (sampling.engines, sampling.scorers, sampling.rankers)
    )
    trainers = config.training.worker_count * config.cluster.worker_gpus if sampling.stream else 0.0
    parts = {"training workers": trainers, "engines": engine, "scorers": scorer, "embedders": ranker}
    needed = max(engine, scorer + ranker) if sampling.in_phases else sum(parts.values())
    if round(needed, 6) <= gpus:
        return
    if sampling.stream:
        remedy = "sampling.stream: false samples before training, for which one GPU is enough"
    elif not sampling.in_phases and engine <= gpus:
        remedy = (
            "Leave out cluster.gpus_per_worker and sampling.in_phases: they share a card, or work one after the other"
        )
    else:
        remedy = "A smaller sampling.engine.tensor_parallel needs less"
    sums = " + ".join(f"{name} {number:g}" for name, number in parts.items() if number)
    when = "one after the other" if sampling.in_phases else "at once"
    yield f"stage sampling: {sums}, {when}: {needed:g} GPUs, and {has}. {remedy}"


def memory_faults(config: RunConfig, shape: ModelSize | None, space: CardSpace | None) -> Iterator[str]:
    """What is too large for a card whatever the lengths of the texts. shape, space: None if they are unknown."""
    if shape is None or space is None:
        return
    weights, usable = BYTES[config.training.precision] * shape.parameters, f"{space.usable / GIB:.1f} can be used"
    cards = config.sampling.engine.tensor_parallel if config.sampling.samples else 0
    for actor, part, remedy in (
        ("an engine", cards, "a larger sampling.engine.tensor_parallel"),
        ("a scorer", 1, "training.precision: bf16"),
    ):
        if part and weights / part + CONTEXT > space.usable:
            divided = f" / {part}" if part > 1 else ""
            yield (
                f"stage sampling: {actor} needs at least {weights / GIB:.1f} GiB of weights{divided} + {CONTEXT / GIB:.2f} for "
                f"its process = {(weights / part + CONTEXT) / GIB:.1f} GiB on a card, of which {usable}: {remedy}, or a "
                "smaller model"
            )
    for stage, (section, tokens) in trainings(config).items():
        memory = training_memory(shape, section, section.zero_stage, tokens)
        states = memory.weights + memory.gradients + memory.optimizer
        if states > space.usable:
            parts = " + ".join(f"{n / GIB:.1f}" for n in (memory.weights, memory.gradients, memory.optimizer))
            yield (
                f"stage {stage}: weights, gradients and optimizer take {parts} = {states / GIB:.1f} GiB on a card, of which "
                f"{usable}: more GPUs with a higher zero_stage ({section.zero_stage} now), or a smaller model"
            )
