"""Stages `cpo` and `mle` train on the same prompts, step by step: a comparison of losses, not of data."""

import itertools

import pytest
import ray

from cpo_ray.artifacts import read_table, write_table
from cpo_ray.cluster.session import LazyRay
from cpo_ray.config import RunConfig
from cpo_ray.errors import ArtifactError
from cpo_ray.run_directory import open_run
from cpo_ray.sampling import groups
from cpo_ray.sampling.reference_model import Reference
from cpo_ray.sampling.units import write_units
from cpo_ray.stages import perform
from cpo_ray.training import trainer
from cpo_ray.training.loader import StoredLoader
from cpo_ray.training.rows import TrainingRows
from tests.sampling.example_rows import draw, make_table

STEPS, CONTEXT, MAX_RESPONSE = 7, 14, 8


def config(rounds=1, **sampling):
    return RunConfig.model_validate(
        {
            "name": "x",
            "rounds": rounds,
            "data": {
                "train_rows": 40,
                "validation_rows": 8,
                "max_prompt_tokens": 8,
                "max_response_tokens": MAX_RESPONSE,
                "on_bad_row": "quarantine",
            },
            "model": {"context": 32},
            "sampling": {"rows": 21, "batch_rows": 4, "shard_rows": 8, "negatives": {"batch": 1, "meanfield": 0}}
            | sampling,
            "training": {
                "steps": STEPS,
                "prompts_per_step": 8,
                "prompts_per_microbatch": 4,
                "validation_rows": 6,
            },
            "tracking": {"tensorboard": False},
        }
    )


def write_examples(out):
    """Row 5 cannot be truncated, and the prompts of rows 3 and 9 have no room in the reference's context."""
    for split, rows in (("train", 40), ("validation", 8)):
        responses = [[1 + row, 2, 3, 0] if row != 5 else [7, 0] for row in range(rows)]
        table = make_table(responses).to_pylist()
        for number, row in enumerate(table):
            row["id"] = f"{split}-{number}"
            row["prompt_ids"] = list(range(1, 9 if number in (3, 9) else 5))
        write_table(out / split / "part-00000.parquet", make_table([]).from_pylist(table, make_table([]).schema))
    return {}


def finished(unit):
    """The unit as the actors would return it, with scores of zero."""
    for group in unit["groups"]:
        k = len(group["candidate_ids"])
        group |= {"candidate_text": ["t"] * k, "similarity": [1.0] * k, "rank": list(range(k)), "ref_logps": [0.0] * k}
    return unit


@pytest.fixture
def without_actors(monkeypatch):
    """Sampling and training without Ray's processes. Returns stage -> its task, and the ids of each of its steps."""
    reference = Reference(None, CONTEXT, eos=0, vocabulary=100)
    seen = {}

    def units(config, selection, model, starts, *_):
        return [finished(draw(selection.table, start, config)) for start in starts]

    def train(task, cluster, checkpoints, out, *_):
        seen[task.stage] = task, batches(task)
        return {"steps": task.training.steps}

    monkeypatch.setattr(LazyRay, "ensure", lambda *_: None)
    monkeypatch.setattr(groups, "read_reference", lambda _: reference)
    monkeypatch.setattr(groups, "check_embedder", lambda _: None)
    monkeypatch.setattr(groups, "groups_dataset", units)
    monkeypatch.setattr(groups, "iterate_units", lambda units: (unit for unit in units))
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(trainer, "train_model", train)
    return seen


def batches(task):
    """(id, prompt, gold) of each row of each step."""
    if task.stream is None:
        loader = StoredLoader(TrainingRows.read(task.rows, task), task)
        loaded = [loader.load(step) for step in range(task.training.steps)]
        return [[contents(batch.rows, row) for row in batch.numbers] for batch in loaded]
    steps = []
    for step in range(task.training.steps):
        unit = finished(task.stream.draw(step))
        task.stream.record(write_units([unit]))
        steps.append([(group["id"], group["prompt_ids"], group["candidate_ids"][0]) for group in unit["groups"]])
    return steps


def contents(rows, row):
    return rows.ids[row], rows.prompts[row], rows.candidates[row][0]


@pytest.mark.parametrize("stream", [False, True])
def test_cpo_and_mle_train_on_the_same_prompts_step_by_step(stream, without_actors, tmp_path):
    with open_run(config(stream=stream), tmp_path, accept_changes=False) as run:
        run.make("data", {}, write_examples)
        run.make("models/reference", {}, lambda _: {})
        for stage in ("sampling", "cpo", "mle"):
            perform(stage, run)
    (cpo, of_cpo), (mle, of_mle) = without_actors["cpo"], without_actors["mle"]
    assert of_cpo == of_mle
    used = {row_id: prompt for step in of_mle for row_id, prompt, _ in step}
    assert used.keys() == {f"train-{number}" for number in range(21) if number != 5}  # 7 * 8 of 20 rows
    assert used["train-3"] == [3, 4, 5, 6, 7, 8]  # cut as in its group
    held_out = [TrainingRows.read(task.validation, task, 6) for task in (cpo, mle)]
    for each in held_out:
        assert each.ids == [f"validation-{number}" for number in range(6) if number != 5]
    assert [contents(held_out[0], row) for row in range(5)] == [contents(held_out[1], row) for row in range(5)]


def test_the_rounds_of_cpo_take_the_batches_of_the_baseline_one_after_another(without_actors, tmp_path):
    with open_run(config(rounds=3), tmp_path, accept_changes=False) as run:
        run.make("data", {}, write_examples)
        run.make("models/reference", {}, lambda _: {})
        for stage in ("sampling", "cpo", "mle"):
            perform(stage, run)
    of_rounds = [without_actors[f"cpo-{number}"][1] for number in (1, 2, 3)]
    assert [len(steps) for steps in of_rounds] == [STEPS] * 3
    assert list(itertools.chain(*of_rounds)) == without_actors["mle"][1]


def test_the_baseline_depends_on_its_prompts_and_not_on_the_negatives(without_actors, tmp_path, capsys):
    """Another count of negatives leaves the model of `mle`; fewer rows do not."""
    for sampling, remade in (({}, True), ({"negatives": {"batch": 2, "meanfield": 0}}, False), ({"rows": 13}, True)):
        with open_run(config(**sampling), tmp_path, accept_changes=True) as run:
            run.make("data", {}, write_examples)
            run.make("models/reference", {}, lambda _: {})
            perform("sampling", run)
            capsys.readouterr()
            perform("mle", run)
        assert ("made models/mle" in capsys.readouterr().out) == remade


def test_groups_of_an_older_version_are_refused_with_the_remedy(without_actors, tmp_path):
    with open_run(config(), tmp_path, accept_changes=False) as run:
        for name in ("data", "models/reference", "groups/train", "groups/validation"):
            run.make(name, {}, lambda _: {})
        with pytest.raises(
            ArtifactError, match=r"groups/train/selected is missing.*Delete .*groups/train, .*`sampling`"
        ):
            perform("mle", run)


def test_groups_hold_their_examples(without_actors, tmp_path):
    with open_run(config(), tmp_path, accept_changes=False) as run:
        run.make("data", {}, write_examples)
        run.make("models/reference", {}, lambda _: {})
        perform("sampling", run)
    for split in ("train", "validation"):
        made, selected = (read_table(tmp_path / "groups" / split / part) for part in (".", "selected"))
        assert made["id"].to_pylist() == selected["id"].to_pylist()
        assert made["prompt_ids"].to_pylist() == selected["prompt_ids"].to_pylist()
        assert [each[0] for each in made["candidate_ids"].to_pylist()] == selected["response_ids"].to_pylist()
