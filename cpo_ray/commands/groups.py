"""`cpo-ray groups`: write a run's groups in the layouts of other trainers."""

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from cpo_ray.artifacts import write_atomically, write_table
from cpo_ray.commands.failures import exit_on_error
from cpo_ray.errors import ArtifactError, ConfigError
from cpo_ray.monitoring.console import say
from cpo_ray.records import Group

groups = typer.Typer(help="Write a run's groups for other trainers.", no_args_is_help=True)
ENDINGS = (".jsonl", ".parquet")


class ExportLayout(StrEnum):
    """What a row of the file is."""

    PAIRS = "pairs"
    COMPLETIONS = "completions"


class PairChoice(StrEnum):
    """Which pairs of a group are written."""

    BEST = "best"
    BEST_WORST = "best-worst"
    ALL = "all"


@groups.callback()
def _top() -> None:
    """Write a run's groups for other trainers."""


@groups.command("export")
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory, e.g. runs/demo.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, .jsonl or .parquet.")],
    layout: Annotated[
        ExportLayout,
        typer.Option(
            "--as", help="`pairs`: prompt, chosen, rejected (TRL). `completions`: rated ones (UltraFeedback)."
        ),
    ] = ExportLayout.PAIRS,
    pairs: Annotated[
        PairChoice,
        typer.Option("--pairs", help="The best over each worse candidate, over the worst alone, or every pair."),
    ] = PairChoice.BEST,
    split: Annotated[
        str, typer.Option("--split", help="`train`, or `validation` if the run has groups for it.")
    ] = "train",
) -> None:
    """Write a run's groups as preference pairs, or as rows of rated completions."""
    with exit_on_error():
        if out.suffix not in ENDINGS:
            raise ConfigError(f"{out}: the file must end in {' or '.join(ENDINGS)}")
        if out.exists():
            raise ConfigError(f"{out} exists already: name another file, or delete it")
        rows = list(_rows(run_dir, split, layout, pairs))
        _write(out, rows)
        say(f"{len(rows):,} rows in {out}")


def _rows(root: Path, split: str, layout: ExportLayout, pairs: PairChoice) -> Iterator[dict[str, Any]]:
    from cpo_ray.sampling.export import preference_pairs, rated_completions

    folder = root / "groups" / split
    shards = sorted(folder.glob("*.parquet"))
    if not shards:
        raise ArtifactError(f"no finished groups in {folder}: run `cpo-ray sampling CONFIG` first")
    for shard in shards:
        for group in cast("list[Group]", pq.read_table(shard).to_pylist()):
            if layout is ExportLayout.PAIRS:
                yield from preference_pairs(group, pairs.value)
            else:
                yield rated_completions(group)


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    if out.suffix == ".parquet":
        write_table(out, pa.Table.from_pylist(rows))
        return
    with write_atomically(out) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
