"""Small pieces of HTML. The caller escapes text that comes from a run, unless a function does."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

Cell = str | tuple[str, str]  # HTML, or (HTML, CSS class)

DASH = "\N{EN DASH}"


def grid(heads: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str) -> str:
    """Render a table whose first column is the row heading. It scrolls horizontally if it is too wide."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return scrolling_table(f"<tr>{head}</tr>", rows, caption)


def scrolling_table(head: str, rows: Iterable[Sequence[Cell]], caption: str) -> str:
    """Like `grid`, with the rows of the table head as HTML."""
    lines = []
    for first, *rest in rows:
        cells = [cell if isinstance(cell, tuple) else (cell, "") for cell in rest]
        tail = "".join(f'<td class="{name}">{text}</td>' if name else f"<td>{text}</td>" for text, name in cells)
        lines.append(f'<tr><th scope="row">{first}</th>{tail}</tr>')
    table = f"<table><caption>{escape(caption)}</caption><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">{table}</div>'


def missing_notice(text: str) -> str:
    """Render a notice that something is missing."""
    return f'<p class="absent">{escape(text)}</p>'


def comma_list(items: Sequence[str]) -> str:
    """Escape words and join them with commas."""
    return ", ".join(escape(item) for item in items)


def format_number(value: Any, form: str) -> str:
    """Format a number, with a minus sign instead of a hyphen; a dash for None."""
    return DASH if value is None else format(value, form).replace("-", "\N{MINUS SIGN}")


def format_time(created: str | None) -> str:
    """Shorten 2026-01-02T03:04:05Z to `2026-01-02 03:04`."""
    return escape(created[:16].replace("T", " ")) if created else DASH


def format_duration(seconds: float | None) -> str:
    """Format as seconds, or as minutes and seconds."""
    if seconds is None:
        return DASH
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
