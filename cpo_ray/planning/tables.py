"""What a configuration leads to: a few lines for `validate`, or tables for `plan`."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from cpo_ray.config import RunConfig
from cpo_ray.planning.estimate import RunPlan
from cpo_ray.planning.scaling import MACHINES, NETWORK_UTILIZATION, scale
from cpo_ray.planning.work import START_UP_H, Machine

GIB = 2**30
LAPTOP_GBIT = 10


def describe_run(config: RunConfig) -> list[str]:
    """K, batch sizes, tokens and epochs of a configuration, one line each."""
    training, counts = config.training, config.sampling.negatives
    rows = min(config.sampling.rows or config.data.rows("train"), config.data.rows("train"))
    passes = training.prompts_per_step // (training.worker_count * training.prompts_per_microbatch)
    own = config.candidates - counts.truncation
    most = training.prompts_per_step * (config.data.max_prompt_tokens + own * config.data.max_response_tokens)
    total = config.rounds * training.steps
    epochs = total * training.prompts_per_step / rows
    steps = f"CPO and MLE: {training.steps} steps each"
    if config.rounds > 1:
        steps = f"CPO: {config.rounds} rounds of {training.steps} steps, each with new groups; MLE: {total} steps"
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.by_kind.items())
    sampled = ", ".join(f"{kind} ({decoding})" for kind, decoding in config.sampling.sampled.items())
    return [
        _describe_candidates(config, kinds),
        *([f"sampled by vLLM: {sampled}"] if sampled else []),
        f"a CPO step: {training.prompts_per_step} prompts, {training.prompts_per_step * config.candidates} candidates",
        f"on {training.worker_count} workers x {passes} microbatches of {training.prompts_per_microbatch} prompts",
        f"tokens per CPO step: at most {most:,} (each prompt once, truncations share the truth's)",
        f"{steps} over the same {rows:,} prompts, {epochs:.1f} epochs",
        _describe_rates(config),
        *_describe_adapter(config),
        f"models compared: {', '.join(config.evaluated_models)}",
    ]


def _describe_candidates(config: RunConfig, kinds: str) -> str:
    total = config.sampling.negatives.total
    if not config.data.has_answers:
        return f"K = {config.candidates}: the truth and {total} negatives ({kinds})"
    negatives = f" and {total} negatives ({kinds})" if total else ""
    return f"K <= {config.candidates}: at most {config.data.max_answers} ranked answers of a row{negatives}"


def _describe_adapter(config: RunConfig) -> list[str]:
    adapter = config.adapter
    if adapter is None:
        return []
    targets = "every linear layer of the blocks" if adapter.targets == "auto" else ", ".join(adapter.targets)
    frozen = f", the rest in {adapter.quantize}" if adapter.quantize else ""
    whole = "" if config.model.path is not None else "; the reference starts from random weights and is trained whole"
    return [f"adapters: rank {adapter.rank}, alpha {adapter.alpha:g}, in {targets}{frozen}{whole}"]


def _describe_rates(config: RunConfig) -> str:
    rates = config.tuning.trial_names
    if not rates:
        return (
            f"learning rates: {config.training.learning_rate:g} for CPO, {config.mle_training.learning_rate:g} for MLE"
        )
    return (
        f"learning rates: {', '.join(rates)} are tried by CPO and by MLE, {2 * len(rates)} trainings; the loss on "
        f"{config.training.validation_rows:,} validation prompts chooses one of each"
    )


def render_plan(plan: RunPlan, price: float | None = None) -> Group:
    """The estimate with its assumptions. price: of a machine-hour, in any currency."""
    config, shape, tokens = plan.config, plan.shape, plan.tokens
    rows = min(config.sampling.rows or config.data.rows("train"), config.data.rows("train"))
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for name, value in (
        (
            "rows",
            f"{config.data.train_rows:,} train, {config.data.test_rows:,} test; {rows:,} groups of K = {config.candidates}",
        ),
        ("tokens", f"{tokens.prompt:.0f} per prompt, {tokens.response:.0f} per response ({tokens.origin})"),
        ("", f"{tokens.group(config):.0f} per group, {rows * tokens.group(config):,.0f} over all groups"),
        ("parameters", f"{shape.parameters:,} ({shape.origin})"),
        *([] if shape.adapter is None else [("trained", f"{shape.trained:,} in the adapter")]),
        ("machine", f"{plan.gpus} x {plan.device.name}, {plan.device.memory_gib:.0f} GiB each"),
    ):
        facts.add_row(name, escape(value))
    parts: list[RenderableType] = [facts, "", _memory_table(plan), "", _work_table(plan), "", _closing(plan)]
    if plan.device.network_gbit > LAPTOP_GBIT:
        parts += ["", _scale_table(plan, price)]
    return Group(*parts)


def _closing(plan: RunPlan) -> str:
    """The totals and the assumptions."""
    slowest, device = plan.bottleneck, plan.device
    shares = Machine(device, plan.gpus).utilization.items()
    assumed = ", ".join(f"{share:.0%} in {kind}" for kind, share in shares)
    measured = " (measured now)" if device.cores else ""
    return (
        f"Total: {plan.gpu_hours:.2g} {_unit(plan)}-hours; {_duration(plan.hours)} by the clock, of which the stages' starts "
        f"take {_duration(plan.start_hours)}. The bottleneck is [bold]{slowest.stage}[/] "
        f"({slowest.total_hours / plan.hours:.0%} of the time).\n"
        f"Assumed: {device.bf16_tflops:.3g} TFLOP/s in bf16, {device.fp32_tflops:.3g} in fp32{measured}; "
        f"share of the peak that is used: {assumed}. Not included: data, judging, reward, mauve, text_metrics, report."
    )


def _unit(plan: RunPlan) -> str:
    return "core" if plan.device.cores else "GPU"


def _duration(hours: float) -> str:
    """Two digits, in hours, minutes or seconds."""
    for unit, size in (("h", 1.0), ("min", 1 / 60)):
        if hours >= size:
            amount = hours / size
            return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}"
    return f"{hours * 3600:.0f} s"


def _scale_table(plan: RunPlan, price: float | None) -> Table:
    own = plan.gpus // plan.device.per_node
    table = Table(
        title=f"On more machines of {plan.device.per_node} GPUs, with as many workers as the batch allows",
        title_justify="left",
        caption=f"Hours include {START_UP_H * 60:.0f} minutes of start-up per stage, and sending the gradients at "
        f"{NETWORK_UTILIZATION:.0%} of {plan.device.network_gbit:g} Gbit/s, without overlap.",
        caption_justify="left",
    )
    for heading in ("machines", "workers", "GB per step", "hours", "network hours", "bottleneck", "limited by"):
        table.add_column(heading, justify="left" if heading in ("bottleneck", "limited by") else "right")
    if price is not None:
        table.add_column("price", justify="right")
    for machines in sorted({own, *MACHINES}):
        each = scale(plan, machines)
        cells = [str(machines), str(each.workers), f"{each.traffic / 1e9:.1f}", f"{each.hours:.2g}"]
        cells += [f"{each.network_hours:.2g}", each.bottleneck, each.why]
        table.add_row(*cells, *([f"{each.machine_hours * price:,.0f}"] if price is not None else []))
    return table


def _memory_table(plan: RunPlan) -> Table:
    training, unit = plan.config.training, _unit(plan)
    table = Table(
        title=f"GiB per {unit} in stage cpo: {training.worker_count} workers, {training.precision}",
        title_justify="left",
        caption="total: weights, gradients, optimizer, and the larger of activations + buckets (backward pass) and update.",
        caption_justify="left",
    )
    headings = ("weights", "gradients", "optimizer", "activations", "buckets", "update", "total")
    for heading in ("ZeRO", *headings, ""):
        table.add_column(heading, justify="right")
    for stage, memory in plan.memory.items():
        parts = (getattr(memory, heading) for heading in headings)
        note = "fits" if memory.total <= 0.9 * plan.device.memory_gib * GIB else "[red]too much[/]"
        chosen = " (configured)" if stage == training.zero_stage else ""
        table.add_row(str(stage), *(f"{part / GIB:.2f}" for part in parts), note + chosen)
    return table


def _work_table(plan: RunPlan) -> Table:
    table, unit = Table(title="Work", title_justify="left"), _unit(plan)
    for heading in ("stage", "tokens", "FLOPs", f"{unit}s", "start", "time", f"{unit}-hours"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for work in plan.work:
        table.add_row(
            work.stage,
            f"{work.tokens:,.0f}",
            f"{work.flops:.2e}",
            str(work.gpus),
            _duration(work.start_hours),
            _duration(work.hours),
            f"{work.gpu_hours:.2g}",
        )
    return table
