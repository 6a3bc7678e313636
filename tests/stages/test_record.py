"""The record of a stage drives what it may read and write, and what its artifacts depend on."""

import dataclasses
import re
from pathlib import Path

import pytest

import cpo_ray.stages
from cpo_ray.artifacts import make_artifact
from cpo_ray.config import RunConfig
from cpo_ray.errors import ArtifactError
from cpo_ray.run_directory import open_run
from cpo_ray.stages import STAGES, Output, Read, Stage, StageRun, expected_artifacts
from cpo_ray.stages.record import recipes

STREAMED = {"sampling": {"stream": True}}
PRETRAINED = {"model": {"path": "some/model"}}
VALIDATED = {"training": {"validation_rows": 8}}
REWARDED = {"reward": {"model": "some/model"}}
ITERATED = {"rounds": 3, "data": {"validation_rows": 8}, "training": {"validation_rows": 8}}


def config(**sections):
    return RunConfig.model_validate({"name": "x", **sections})


@pytest.mark.parametrize("sections", [{}, STREAMED, PRETRAINED, VALIDATED, REWARDED, ITERATED])
def test_every_read_is_written_by_the_same_or_an_earlier_stage(sections):
    written = set()
    for stage in STAGES.values():
        made = recipes(stage, config(**sections))
        written |= set(made)
        for recipe in made.values():
            assert {*recipe.required, *recipe.optional} <= written, recipe


@pytest.mark.parametrize("sections", [{}, STREAMED, PRETRAINED, VALIDATED, REWARDED, ITERATED])
def test_every_artifact_has_one_writer(sections):
    names = [name for stage in STAGES.values() for name in recipes(stage, config(**sections))]
    assert sorted(names) == sorted(set(names)) == sorted(expected_artifacts(config(**sections)))


def test_what_a_configuration_leads_to():
    made = expected_artifacts(config(merging={"alphas": [0.5]}, generation={"models": ["cpo"]}))
    assert made["models/merged-0.50"] == "merging"
    assert made["generations/cpo"] == "generation"
    assert made.keys() & {"generations/mle", "reward", "groups/validation"} == set()
    assert expected_artifacts(config(**STREAMED))["groups/train"] == "cpo"
    assert [name for name in expected_artifacts(config(**ITERATED)) if "cpo" in name and name.startswith("models/")] == [
        "models/cpo-1", "models/cpo-2", "models/cpo-3", "models/cpo",
    ]  # fmt: skip
    assert "models/initial" not in expected_artifacts(config(**PRETRAINED))


def test_every_key_that_a_record_names_exists():
    for sections in ({}, STREAMED, VALIDATED, REWARDED, ITERATED):
        for stage in STAGES.values():
            for recipe in recipes(stage, config(**sections)).values():
                assert all(value is not None for key, value in recipe.values.items() if key != "model.path"), recipe


def test_a_section_counts_only_if_it_is_there():
    """So a run that was made before there were adapters stays current; a reference from scratch never has one."""
    one, other = ({name: recipe.values for stage in STAGES.values() for name, recipe in recipes(stage, each).items()}
                  for each in (config(), config(adapter={"rank": 8})))  # fmt: skip
    assert not any("adapter" in values for values in one.values())
    assert {name for name in one if one[name] != other[name]} == {"models/cpo", "models/mle", "report"}
    assert other["models/cpo"] == one["models/cpo"] | {"adapter": config(adapter={"rank": 8}).adapter.model_dump()}
    merged, alone = (
        recipes(STAGES["reference"], config(**PRETRAINED, adapter={"export": export}))["models/reference"].values
        for export in ("merged", "adapter")
    )
    assert merged == alone
    assert merged["adapter"]["rank"] == 16


def test_the_keys_of_the_record_are_the_inputs_of_the_manifest(tmp_path):
    with open_run(config(seed=5), tmp_path, accept_changes=False) as run:
        make_artifact(tmp_path, "data", {}, lambda _: {})
        made = run.make("data", {}, lambda _: {})
        stage = StageRun(COUNTING, run, {})
        inputs = stage.inputs("counted", {"alpha": 0.5})
        assert inputs["config"].keys() == {"seed", "objective"}
        assert inputs["config"]["seed"] == 5
        assert "beta" not in inputs["config"]["objective"]
        assert inputs["config"]["objective"]["ranked"] is True
        assert inputs["reads"] == {"data": made.fingerprint}
        assert inputs["also"] == {"alpha": 0.5}


def test_an_output_that_reads_a_part_depends_on_its_files_alone(tmp_path, capsys):
    part = Output("counted", reads=(Read("data", part="train"),), keys=("seed",))
    stage = Stage("counting", "for these tests", (part,), lambda stage: None)

    def write(text):
        def build(out):
            (out / "train").mkdir(exist_ok=True)
            (out / "train" / "rows").write_text(text)
            return {}

        return build

    for seed, text, remade in ((1, "same", True), (2, "same", False), (2, "same", False), (3, "other", True)):
        with open_run(config(), tmp_path, accept_changes=True) as run:
            run.make("data", {"seed": seed}, write(text))
            inputs = StageRun(stage, run, {}).inputs("counted")
            capsys.readouterr()
            StageRun(stage, run, {}).make("counted", lambda _: {})
        assert list(inputs["reads"]) == ["data/train"]
        assert ("made counted" in capsys.readouterr().out) == remade


def test_a_stage_cannot_read_or_write_what_its_record_does_not_name(tmp_path):
    with open_run(config(), tmp_path, accept_changes=False) as run:
        stage = StageRun(COUNTING, run, {"data": "data"})
        with pytest.raises(ValueError, match="counting reads models/cpo, which its record does not name"):
            stage.read("models/cpo")
        with pytest.raises(KeyError, match="elsewhere"):
            stage.make("elsewhere", lambda _: {})
        with pytest.raises(ArtifactError, match="run the stage `data` first"):
            stage.read("data")


def test_a_changed_key_rebuilds_and_an_ignored_or_execution_only_one_does_not(tmp_path, capsys):
    for sections, remade in (
        ({}, True),
        ({"objective": {"beta": 1.0}}, False),
        ({"objective": {"beta": 1.0}, "training": {"workers": 1}}, False),
        ({"objective": {"ranked": False}}, True),
    ):
        with open_run(config(**sections), tmp_path, accept_changes=True) as run:
            run.make("data", {}, lambda _: {})
            capsys.readouterr()
            StageRun(COUNTING, run, {}).make("counted", lambda _: {})
        assert ("made counted" in capsys.readouterr().out) == remade
    assert "objective.ranked changed" in describe_last(tmp_path, capsys)


def describe_last(root, capsys):
    with open_run(config(), root, accept_changes=True) as run:
        StageRun(COUNTING, run, {}).make("counted", lambda _: {})
    return capsys.readouterr().out


def test_the_command_line_shows_the_record():
    assert STAGES["sampling"].reads == ("data", "models/reference")
    assert STAGES["sampling"].writes == ("groups/train", "groups/validation")
    assert STAGES["generation"].writes == ("generations/*",)
    assert STAGES["reference"].reads == ("data",)
    assert STAGES["mle"].reads == ("models/reference", "groups/train", "groups/validation", "models/cpo")
    assert STAGES["mle"].under(config()).reads == ("models/reference", "groups/train")
    assert STAGES["cpo"].under(config()).reads == ("models/reference", "groups/train")
    assert STAGES["cpo"].under(config()).writes == ("models/cpo",)
    assert STAGES["cpo"].under(config(**ITERATED)).writes == (
        "models/cpo-1", "groups/train-*", "models/cpo-*", "models/cpo",
    )  # fmt: skip
    assert STAGES["report"].writes == ("report", "models/*/README.md")


def test_no_stage_reads_an_artifact_past_its_record():
    for file in Path(cpo_ray.stages.__file__).parent.glob("*.py"):
        if file.name != "record.py":
            assert not re.search(r"find_artifact|make_artifact|run\.make", file.read_text()), file


def test_a_stage_of_ones_own_is_one_record_and_one_function(tmp_path):
    """What CONTRIBUTING and docs/architecture.md promise."""
    counts = Output("counts", reads=("data",), keys=("seed",))

    def count(stage):
        data = stage.read("data")
        stage.make(counts.name, lambda out: {"files": len(list(data.path.iterdir()))})

    stage = Stage("count", "count the files of the data", (counts,), count)
    with open_run(config(), tmp_path, accept_changes=False) as run:
        run.make("data", {}, lambda _: {})
        stage.perform(StageRun(stage, run, {}))
    assert (tmp_path / "counts" / "manifest.json").is_file()


COUNTED = Output(
    "counted",
    reads=("data", Read("models/initial", when=lambda config: config.seed < 0)),
    keys=("seed", "objective"),
    ignored=("objective.beta",),
)
COUNTING = Stage("counting", "for these tests", (COUNTED,), lambda stage: None)


def test_records_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        COUNTING.name = "other"
