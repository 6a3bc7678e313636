"""Answers that the data ranks, with and without negatives of ours, through the whole stage."""

import pyarrow as pa
import pytest
from transformers import AutoModelForCausalLM

from cpo_ray.artifacts import read_table, write_table
from cpo_ray.cluster.session import ray_cluster
from cpo_ray.config import ClusterConfig, RunConfig
from cpo_ray.records import RANKED_EXAMPLE_SCHEMA, SCORED_GROUP_SCHEMA
from cpo_ray.sampling.groups import make_groups
from tests.sampling.group_settings import make_config
from tests.sampling.test_scoring import plain_logp

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def ray():
    with ray_cluster(ClusterConfig(object_store_gib=0.2)) as cluster:
        cluster.ensure()
        yield


@pytest.fixture(scope="module")
def rows(data, tmp_path_factory):
    """Rows with one to three other answers, of which the first ties with the response."""
    rows = [row for row in read_table(data / "train").to_pylist() if row["id"] != f"{40:016x}"]
    for number, row in enumerate(rows):
        count = 1 + number % 3
        others = [rows[(number + n) % len(rows)]["response_ids"] for n in range(1, 1 + count)]
        ranks, scores = [0, 2, 3] if count > 1 else [1], [1.0, 1.0, 0.5, 0.0] if count > 1 else [1.0, 0.0]
        row |= {"answer_text": ["x"] * count, "answer_ids": others}
        row |= {"answer_rank": ranks[:count], "answer_score": scores[: count + 1]}
    return rows


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("negatives", [{}, {"meanfield": 1, "truncation": 1}])
def test_answers_that_the_data_ranks_are_candidates(negatives, rows, reference, tmp_path):
    """Their ranks and scores stay; negatives are worse than all answers."""
    table = pa.Table.from_pylist(rows, schema=RANKED_EXAMPLE_SCHEMA)
    write_table(tmp_path / "data" / "train" / "part-00000.parquet", table)
    counts = {"batch": 0, "meanfield": 0, "truncation": 0, **negatives}
    tree = make_config().model_dump()
    tree["sampling"] |= {"negatives": counts, "kinds": {}}
    tree["data"] |= {"source": "preferences", "path": "x"}
    summary = make_groups(
        RunConfig.model_validate(tree), tmp_path / "data", reference, tmp_path / "out", lambda _: None
    )
    groups = read_table(tmp_path / "out")
    assert groups.schema.equals(SCORED_GROUP_SCHEMA)
    assert summary["rows"] == len(groups) == len(rows)
    model = AutoModelForCausalLM.from_pretrained(reference)
    for number, (row, group) in enumerate(zip(rows, groups.to_pylist(), strict=True)):
        count = len(row["answer_ids"])
        assert group["candidate_kind"] == ["gold", *["answer"] * count, *negatives]
        assert group["candidate_ids"][: 1 + count] == [row["response_ids"], *row["answer_ids"]]
        assert group["rank"][: 1 + count] == [0, *row["answer_rank"]]
        assert sorted(group["rank"][1 + count :]) == list(range(1 + count, 1 + count + len(negatives)))
        assert group["score"] == row["answer_score"] + [None] * len(negatives)
        if number % 20 == 0:
            expected = [plain_logp(model, group["prompt_ids"], candidate) for candidate in group["candidate_ids"]]
            assert group["ref_logps"] == pytest.approx(expected, abs=1e-3)
