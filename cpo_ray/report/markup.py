"""Small pieces of HTML. Text that comes from a run is escaped by who passes it here."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

Cell = str | tuple[str, str]  # HTML, or HTML and a class

DASH = "\N{EN DASH}"


def grid(heads: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str) -> str:
    """A table whose first column heads its rows; it scrolls by itself where it is too wide."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return scrolling(f"<tr>{head}</tr>", rows, caption)


def scrolling(head: str, rows: Iterable[Sequence[Cell]], caption: str) -> str:
    """The same with the head's rows as HTML, for heads of several rows."""
    lines = []
    for first, *rest in rows:
        cells = [cell if isinstance(cell, tuple) else (cell, "") for cell in rest]
        tail = "".join(f'<td class="{name}">{text}</td>' if name else f"<td>{text}</td>" for text, name in cells)
        lines.append(f'<tr><th scope="row">{first}</th>{tail}</tr>')
    table = f"<table><caption>{escape(caption)}</caption><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">{table}</div>'


def absent(text: str) -> str:
    """What is not there, said."""
    return f'<p class="absent">{escape(text)}</p>'


def listed(items: Sequence[str]) -> str:
    """Words with commas."""
    return ", ".join(escape(item) for item in items)


def number(value: Any, form: str) -> str:
    """A number with a minus sign that is none of a hyphen; a dash where there is none."""
    return DASH if value is None else format(value, form).replace("-", "\N{MINUS SIGN}")


def moment(created: str | None) -> str:
    """2026-01-02T03:04:05Z without what a table does not need."""
    return escape(created[:16].replace("T", " ")) if created else DASH


def duration(seconds: float | None) -> str:
    """Seconds, or minutes and seconds."""
    if seconds is None:
        return DASH
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
