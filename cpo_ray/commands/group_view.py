"""Groups as tables, for `cpo-ray show groups`."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
from rich import box
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cpo_ray.artifacts import STATS
from cpo_ray.errors import ArtifactError
from cpo_ray.records import Group
from cpo_ray.sampling.stats import eos_of

SIMILAR = 0.5  # from this share of common words on, the words that differ from the gold are marked
ABSENT = "-"


def render_groups(root: Path, split: str, row_id: str | None, rows: int) -> RenderableType:
    """Groups of the run directory `root`: the one whose id begins with `row_id`, or statistics and the first `rows`.

    Raises ArtifactError if there are no groups, or not exactly one with that id.
    """
    folder = root / "groups" / split
    shards = sorted(folder.glob("*.parquet"))
    if not shards:
        raise ArtifactError(f"no finished groups in {folder}: run `cpo-ray sampling CONFIG` first")
    if row_id is not None:
        return render_group(*find_group(shards, row_id))
    stats = folder / STATS
    parts: list[RenderableType] = (
        [render_stats(json.loads(stats.read_text(encoding="utf-8"))), ""] if stats.is_file() else []
    )
    return Stack(*parts, *(render_group(group, eos) for group, eos in _first_groups(shards, rows)))


def find_group(shards: Iterable[Path], row_id: str) -> tuple[Group, int | None]:
    """The group whose id begins with `row_id`, and its EOS. Raises ArtifactError if none does, or several do."""
    found: list[tuple[Path, int, str]] = []
    known: list[str] = []
    for shard in shards:
        ids = pq.read_table(shard, columns=["id"])["id"].to_pylist()
        found += [(shard, number, name) for number, name in enumerate(ids) if name.startswith(row_id)]
        known += ids
    if not found:
        nearest = ", ".join(difflib.get_close_matches(row_id, known, n=3, cutoff=0.0))
        raise ArtifactError(
            f"none of the {len(known):,} groups has an id that begins with {row_id!r}; the nearest: {nearest}"
        )
    exact = [entry for entry in found if entry[2] == row_id]
    if len(exact or found) > 1:
        raise ArtifactError(f"{len(found)} groups have ids that begin with {row_id!r}: give more digits")
    shard, number, _ = (exact or found)[0]
    table = pq.read_table(shard)
    return cast("Group", table.slice(number, 1).to_pylist()[0]), eos_of(table)


def render_group(group: Group, eos: int | None) -> RenderableType:
    """The prompt and its candidates, best rank first. If a text is similar to the gold, the words that differ are marked."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("rank", "sim.", "log-prob", "/token", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("text", overflow="fold", ratio=1)
    gold_ids, gold = group["candidate_ids"][0], group["candidate_text"][0]
    for k in sorted(range(len(group["rank"])), key=group["rank"].__getitem__):
        ids, logp = group["candidate_ids"][k], group["ref_logps"][k]
        notes = [" (equals the gold: masked)"] * (k > 0 and ids == gold_ids) + [" (no EOS)"] * (ids[-1] != eos)
        text = Text(visible(gold), style="green") if k == 0 else mark_changes(group["candidate_text"][k], gold)
        table.add_row(
            str(group["rank"][k]),
            f"{group['similarity'][k]:.3f}",
            f"{logp:.2f}",
            f"{logp / len(ids):.2f}",
            str(len(ids)),
            group["candidate_kind"][k],
            text.append("".join(notes), style="yellow"),
        )
    title = Text(f"prompt {group['id']}, {len(group['prompt_ids'])} tokens")
    return Stack(Panel(Text(visible(group["prompt"], lines=True)), title=title, title_align="left"), table)


def render_stats(stats: Mapping[str, Mapping[str, Any]]) -> Table:
    """stats.json as a table, one line per kind."""
    table = Table(box=None, pad_edge=False, collapse_padding=True, title="candidates by kind", title_justify="left")
    columns = {
        "count": ("count", ",.0f"),
        "tokens": ("mean_tokens", ".1f"),
        "sim.": ("mean_similarity", ".3f"),
        "log-prob": ("mean_ref_logp", ".2f"),
        "cut": ("without_eos_rate", ".1%"),
        "= gold": ("equal_to_gold_rate", ".1%"),
        "dupl.": ("duplicate_rate", ".1%"),
        "redrawn": ("redraw_rate", ".1%"),
        "tokens/s": ("tokens_per_second", ",.0f"),
    }
    table.add_column("kind", no_wrap=True, style="bold")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, facts in stats.items():
        values = [(facts.get(key), form) for key, form in columns.values()]
        table.add_row(kind, *(ABSENT if value is None else format(value, form) for value, form in values))
    return table


def mark_changes(text: str, gold: str) -> Text:
    """The text. If it is similar to the gold, the words that differ from it are bold."""
    words, right = visible(text).split(" "), visible(gold).split(" ")
    matcher = difflib.SequenceMatcher(None, right, words, autojunk=False)
    if matcher.ratio() < SIMILAR:
        return Text(" ".join(words))
    pieces = [
        (" ".join(words[start:stop]), "" if operation == "equal" else "bold magenta")
        for operation, _, _, start, stop in matcher.get_opcodes()
        if stop > start
    ]
    return Text(" ").join(Text(*piece) for piece in pieces)


def visible(text: str, *, lines: bool = False) -> str:
    """The text with control characters escaped. `lines` keeps line breaks; otherwise they become an arrow."""
    shown = text if lines else text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in shown)


def _first_groups(shards: Iterable[Path], rows: int) -> Iterator[tuple[Group, int | None]]:
    for shard in shards:
        table = pq.read_table(shard).slice(0, rows)
        eos = eos_of(table)
        yield from ((group, eos) for group in cast("list[Group]", table.to_pylist()))
        rows -= len(table)
        if rows <= 0:
            return
