import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpo_ray.artifacts import read_table, write_table
from cpo_ray.config.loading import parse_config
from cpo_ray.data.examples import prepare_examples
from cpo_ray.records import SCORED_GROUP_SCHEMA
from tests.commands.command_line import invoke


def group(number):
    return {
        "id": f"{number:04x}",
        "prompt": f"Why {number}?\n",
        "prompt_ids": [1],
        "candidate_kind": ["gold", "answer", "answer"],
        "candidate_ids": [[2], [3], [4]],
        "candidate_text": [f"best {number}", f"good {number}", f"bad {number}"],
        "similarity": [1.0, 0.5, 0.0],
        "rank": [0, 1, 2],
        "ref_logps": [-1.0, -2.0, -3.0],
        "score": [3.0, 2.0, 1.0],
    }


@pytest.fixture
def run(tmp_path):
    table = pa.Table.from_pylist([group(number) for number in range(20)], schema=SCORED_GROUP_SCHEMA)
    write_table(tmp_path / "run/groups/train/part-00000.parquet", table)
    return tmp_path / "run"


def test_groups_become_pairs_or_completions(run, tmp_path):
    result = invoke("groups", "export", run, tmp_path / "pairs.jsonl")
    assert result.exit_code == 0, result.output
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 40
    first = {"id": "0000", "prompt": "Why 0?\n", "chosen": "best 0", "rejected": "good 0"}
    assert pairs[0] == first | {
        "chosen_kind": "gold", "rejected_kind": "answer", "score_chosen": 3.0, "score_rejected": 2.0,
    }  # fmt: skip
    assert invoke("groups", "export", run, tmp_path / "one.parquet", "--pairs", "best-worst").exit_code == 0
    assert pq.read_table(tmp_path / "one.parquet")["rejected"].to_pylist()[3] == "bad 3"


@pytest.mark.parametrize("kind", ["pairs", "completions"])
def test_what_is_exported_can_be_read_again(run, tmp_path, kind):
    """All pairs of a group share the best answer; its completions give the same examples as the groups themselves."""
    file = tmp_path / "export.parquet"
    assert invoke("groups", "export", run, file, "--as", kind, "--pairs", "best-worst").exit_code == 0
    sizes = {"train_rows": 12, "validation_rows": 4, "test_rows": 4, "tokenizer": {"vocabulary_size": 300}}
    for name, path in (("again", file), ("groups", run / "groups/train")):
        data = {"source": "preferences", "path": str(path), "template": "{instruction}\n", **sizes}
        prepare_examples(parse_config({"name": "x", "data": data}, "x"), tmp_path / name)
    again, groups = (read_table(tmp_path / name / "train") for name in ("again", "groups"))
    shared = ["id", "prompt", "response"] if kind == "pairs" else groups.schema.names
    assert again.select(shared).equals(groups.select(shared))


def test_nothing_is_overwritten_and_an_unknown_ending_is_named(run, tmp_path):
    (tmp_path / "there.jsonl").write_text("mine")
    for file, reason in (("there.jsonl", "exists already"), ("rows.csv", "must end in .jsonl or .parquet")):
        result = invoke("groups", "export", run, tmp_path / file)
        assert result.exit_code == 2
        assert reason in " ".join(result.output.split())
    missing = invoke("groups", "export", tmp_path, tmp_path / "x.jsonl")
    assert missing.exit_code == 1
    assert "run `cpo-ray sampling CONFIG` first" in " ".join(missing.output.split())
