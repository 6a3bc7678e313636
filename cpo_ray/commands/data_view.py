"""The data of a configuration as tables, for `cpo-ray show data`."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cpo_ray.artifacts import Summary, read_jsonl, read_table
from cpo_ray.commands.group_view import visible
from cpo_ray.config import RunConfig
from cpo_ray.errors import ConfigError

LEFT_OUT = {
    "quarantined_rows": "rows that cannot be used",
    "unanswered_messages": "messages after the last answer of a conversation",
    "rows_left_out_by_weight": "rows beyond the weights of the sources",
    "unused_rows": "rows beyond the sizes of the splits",
    "truncated_prompts": "prompts that lose their beginning (data.max_prompt_tokens)",
    "truncated_responses": "responses that lose their end (data.max_response_tokens)",
}
"""Counts of the stage's summary that mean lost rows or texts, for people."""


def render_data(config: RunConfig, split: str, rows: int) -> RenderableType:
    """The first `rows` rows of a split, and what is left out and why.

    The stage runs in a temporary folder, with bad rows quarantined. Raises ConfigError for an unknown split, DataError like
    the stage.
    """
    from cpo_ray.data.examples import needs_ray, prepare_examples

    if split not in config.data.sizes:
        raise ConfigError(f"--split {split}: the data has {', '.join(config.data.sizes)}")
    if needs_ray(config.data):
        return "The data has several large files, which Ray reads: run stage `data`, then read its summary."
    lenient = config.model_copy(update={"data": config.data.model_copy(update={"on_bad_row": "quarantine"})})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        summary = prepare_examples(lenient, out)
        examples = read_table(out / split).slice(0, rows).to_pylist()
        bad = read_jsonl(out / "quarantine.jsonl") if summary["quarantined_rows"] else []
        from cpo_ray.data.tokenization import load_tokenizer

        tokenizer = load_tokenizer(str(out / "tokenizer"))
    return Stack(*(_render_example(example, tokenizer) for example in examples), _render_left_out(config, summary, bad))


def _render_example(example: Mapping[str, Any], tokenizer: Any) -> RenderableType:
    """A row: its texts, and a line per stretch of tokens with the same loss mask."""
    prompt, response = example["prompt_ids"], example["response_ids"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("token by token", overflow="fold", ratio=1)
    for mask, ids, style in (("0", prompt, "dim"), ("1", response, "green")):
        table.add_row(mask, str(len(ids)), Text(_pieces(ids, tokenizer), style=style))
    between = "" if example["prompt"][-1:].isspace() else "\n"  # a chat template separates the two, not the prompt
    texts = Text(visible(example["prompt"], lines=True) + between, style="dim")
    texts.append(visible(example["response"], lines=True), style="green")
    labels = [example[name] for name in ("source", "category") if example[name]]
    title = Text(f"row {example['id']} ({', '.join(labels)})")
    return Stack(Panel(texts, title=title, title_align="left"), table)


def _pieces(ids: Iterable[int], tokenizer: Any) -> str:
    """Each token as text and id, for example `Why·40`."""
    return " ".join(f"{visible(tokenizer.decode([token]))}\N{MIDDLE DOT}{token}" for token in ids)


def _render_left_out(config: RunConfig, summary: Summary, bad: list[dict[str, Any]]) -> RenderableType:
    from cpo_ray.data.inspection import describe_reasons
    from cpo_ray.data.rows import BadRow

    sizes = ", ".join(f"{summary[f'{name}_rows']:,} {name}" for name in config.data.sizes)
    lines = [f"rows: {sizes}"]
    lines += [f"{summary[key]:,} {what}" for key, what in LEFT_OUT.items() if summary.get(key)]
    if bad:
        lines.append(f"why rows cannot be used: {describe_reasons([BadRow(**row) for row in bad])}")
        if config.data.on_bad_row == "error":
            lines.append("data.on_bad_row is `error`: stage `data` stops at the first of them")
    return Text("\n".join([*lines, *summary["warnings"]]))
