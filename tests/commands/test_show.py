import json

import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner

from cpo_ray import cli
from cpo_ray.artifacts import write_json, write_table
from cpo_ray.commands.group_view import find_group, mark_changes, render_groups, visible
from cpo_ray.errors import ArtifactError
from cpo_ray.records import GROUP_SCHEMA
from cpo_ray.sampling.stats import count_candidates, with_metadata


def group(row_id, gold="the sun is a star"):
    return {
        "id": row_id,
        "prompt": "What is\nthe sun? [bold]\x1b[31m",
        "prompt_ids": [1, 2, 3],
        "candidate_kind": ["gold", "batch", "meanfield", "truncation", "of_mine"],
        "candidate_ids": [[5, 6, 0], [7, 7, 0], [5, 9, 0], [5, 0], [5, 6, 0]],
        "candidate_text": [gold, "sort the list", "the sun is a tree", "the", gold],
        "similarity": [1.0, 0.125, 0.75, 0.5, 1.0],
        "rank": [0, 4, 2, 3, 1],
        "ref_logps": [-3.0, -30.5, -12.25, -4.0, -3.0],
    }


@pytest.fixture
def run(tmp_path):
    shards = [[group("aa01"), group("aa02")], [group("bb03", "another\ngold")]]
    tables = [pa.Table.from_pylist(shard, schema=GROUP_SCHEMA) for shard in shards]
    for number, table in enumerate(tables):
        write_table(tmp_path / "groups" / "train" / f"part-{number:05d}.parquet", table)
    write_json(tmp_path / "groups" / "train" / "stats.json", count_candidates(tables, {"batch": 1234.0}))
    return tmp_path


def printed(*words):
    result = CliRunner().invoke(cli.app, ["show", "groups", *map(str, words)], env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_group_is_printed_by_rank_with_its_scores(run):
    text = printed(run, "--id", "aa02")
    assert "prompt aa02, 3 tokens" in text
    lines = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert [line[5] for line in lines] == ["gold", "of_mine", "meanfield", "truncation", "batch"]
    assert lines[2][:5] == ["2", "0.750", "-12.25", "-4.08", "3"]
    assert "the sun is a star (equals the gold: masked)" in text
    assert "candidates by kind" not in text


def test_candidates_and_golds_without_eos_are_marked(run):
    cut = group("cc04") | {"candidate_ids": [[5, 6, 8], [7, 7, 0], [5, 9, 8], [5, 0], [5, 6, 8]]}
    table = with_metadata(pa.Table.from_pylist([cut], schema=GROUP_SCHEMA), {}, 0)
    write_table(run / "groups" / "train" / "part-00002.parquet", table)
    marked = {line.split()[5]: line for line in printed(run, "--id", "cc").splitlines() if line.strip()[:1].isdigit()}
    assert {kind: "(no EOS)" in line for kind, line in marked.items()} == {
        "gold": True,
        "of_mine": True,
        "meanfield": True,
        "truncation": False,
        "batch": False,
    }
    assert "(no EOS)" not in printed(run, "--id", "aa01")  # of an older version: the gold shows which token is EOS
    write_json(run / "groups" / "train" / "stats.json", count_candidates([table]))
    (gold,) = [line.split() for line in printed(run).splitlines() if line.strip().startswith("gold ")]
    assert gold == ["gold", "1", "3.0", "1.000", "-3.00", "100.0%", "0.0%", "0.0%", "0.0%", "-"]


def test_without_an_id_the_statistics_come_first(run):
    text = printed(run)
    assert text.index("candidates by kind") < text.index("prompt aa01")
    assert "aa02" not in text
    (batch,) = [line.split() for line in text.splitlines() if line.strip().startswith("batch ")]
    assert batch == ["batch", "3", "3.0", "0.125", "-30.50", "0.0%", "0.0%", "0.0%", "0.0%", "1,234"]
    facts = json.loads((run / "groups" / "train" / "stats.json").read_text())
    write_json(run / "groups" / "train" / "stats.json", {"autoregressive": facts["batch"] | {"count": 123456}})
    narrow = CliRunner().invoke(cli.app, ["show", "groups", str(run)], env={"COLUMNS": "80"}).stdout
    assert "\N{HORIZONTAL ELLIPSIS}" not in narrow  # everything fits a terminal of 80 columns
    several = printed(run, "--rows", 3)
    assert all(name in several for name in ("aa01", "aa02", "bb03"))


def test_control_characters_and_markup_are_escaped(run):
    text = printed(run, "--id", "bb")
    assert "[bold]\\x1b[31m" in text
    assert "\x1b" not in text
    assert "another\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}gold" in text
    assert visible("a\nb\t\x07", lines=True) == "a\nb\\t\\x07"


def test_an_id_may_be_cut_short_but_must_be_unique(run):
    shards = sorted((run / "groups" / "train").glob("*.parquet"))
    assert find_group(shards, "b")[0]["id"] == "bb03"
    with pytest.raises(ArtifactError, match="2 groups have ids that begin with 'aa'"):
        find_group(shards, "aa")
    with pytest.raises(ArtifactError, match=r"none of the 3 groups .*'bb07'; the nearest: bb03"):
        find_group(shards, "bb07")


def test_a_run_without_groups_names_the_command_to_run(run, tmp_path):
    result = CliRunner().invoke(cli.app, ["show", "groups", str(run), "--split", "validation"])
    assert result.exit_code == 1
    assert "run `cpo-ray sampling CONFIG` first" in result.stderr


def test_statistics_of_an_older_run_have_empty_cells(run):
    write_json(run / "groups" / "train" / "stats.json", {"batch": {"count": 3, "mean_tokens": 2.0}})
    console = Console(width=120)
    with console.capture() as result:
        console.print(render_groups(run, "train", None, 1))
    assert ["batch", "3", "2.0", *["-"] * 7] in [line.split() for line in result.get().splitlines()]
    (run / "groups" / "train" / "stats.json").unlink()
    assert "prompt aa01" in printed(run)


def test_changed_words_are_marked_if_most_are_the_golds():
    marked = mark_changes("the sun is a tree", "the sun is a star")
    assert marked.plain == "the sun is a tree"
    assert [marked.plain[span.start : span.end] for span in marked.spans if "bold" in str(span.style)] == ["tree"]
    assert mark_changes("all other words", "the sun is a star").spans == []
    assert mark_changes("", "the sun").plain == ""
    assert json.dumps(mark_changes("the sun", "the sun").plain) == '"the sun"'
