"""What a configuration leads to: a few lines for `validate`, or tables for `plan`."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from cpo_ray.cluster.accelerators import UTILIZATION
from cpo_ray.config import RunConfig
from cpo_ray.planning.estimate import RunPlan
from cpo_ray.planning.scaling import MACHINES, NETWORK_UTILIZATION, START_UP_H, scale

GIB = 2**30
LAPTOP_GBIT = 10


def describe_run(config: RunConfig) -> list[str]:
    """K, batch sizes, tokens and epochs of a configuration, one line each."""
    training, counts = config.training, config.sampling.negatives
    rows = min(config.sampling.rows or config.data.train_rows, config.data.train_rows)
    passes = training.prompts_per_step // (training.workers * training.prompts_per_microbatch)
    own = 1 + counts.total - counts.truncation
    most = training.prompts_per_step * (config.data.max_prompt_tokens + own * config.data.max_response_tokens)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.model_dump().items() if count)
    return [
        f"K = {config.candidates}: the truth and {counts.total} negatives ({kinds})",
        f"a CPO step: {training.prompts_per_step} prompts, {training.prompts_per_step * config.candidates} candidates",
        f"on {training.workers} workers x {passes} microbatches of {training.prompts_per_microbatch} prompts",
        f"tokens per CPO step: at most {most:,} (each prompt once, truncations share the truth's)",
        f"CPO: {training.steps} steps over {rows:,} prompts, {training.steps * training.prompts_per_step / rows:.1f} epochs",
        f"models compared: {', '.join(config.evaluated_models)}",
    ]


def render_plan(plan: RunPlan, price: float | None = None) -> Group:
    """The estimate with its assumptions. price: of a machine-hour, in any currency."""
    config, shape, tokens = plan.config, plan.shape, plan.tokens
    rows = min(config.sampling.rows or config.data.train_rows, config.data.train_rows)
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
        ("machine", f"{plan.gpus} x {plan.device.name}, {plan.device.memory_gib:.0f} GiB each"),
    ):
        facts.add_row(name, escape(value))
    assumed = ", ".join(f"{share:.0%} in {kind}" for kind, share in UTILIZATION.items())
    slowest = plan.bottleneck
    closing = (
        f"Total: {plan.gpu_hours:.2g} GPU-hours; the bottleneck is [bold]{slowest.stage}[/] "
        f"({slowest.hours / (sum(work.hours for work in plan.work) or 1):.0%} of the time).\n"
        f"Assumed: {plan.device.bf16_tflops:g} TFLOP/s in bf16, {plan.device.fp32_tflops:g} in fp32; "
        f"share of the peak that is used: {assumed}. Start-up times are extra."
    )
    parts: list[RenderableType] = [facts, "", _memory_table(plan), "", _work_table(plan), "", closing]
    if plan.device.network_gbit > LAPTOP_GBIT:
        parts += ["", _scale_table(plan, price)]
    return Group(*parts)


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
    training = plan.config.training
    table = Table(
        title=f"GiB per GPU in stage cpo: {training.workers} workers, {training.precision}", title_justify="left"
    )
    for heading in ("ZeRO", "weights", "gradients", "optimizer", "activations", "total", ""):
        table.add_column(heading, justify="right")
    for stage, memory in plan.memory.items():
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total)
        note = "fits" if memory.total <= 0.9 * plan.device.memory_gib * GIB else "[red]too much[/]"
        chosen = " (configured)" if stage == training.zero_stage else ""
        table.add_row(str(stage), *(f"{part / GIB:.2f}" for part in parts), note + chosen)
    return table


def _work_table(plan: RunPlan) -> Table:
    table = Table(title="Work", title_justify="left")
    for heading in ("stage", "tokens", "FLOPs", "GPUs", "hours", "GPU-hours"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for work in plan.work:
        table.add_row(
            work.stage,
            f"{work.tokens:,.0f}",
            f"{work.flops:.2e}",
            str(work.gpus),
            f"{work.hours:.2g}",
            f"{work.gpu_hours:.2g}",
        )
    return table
