import json
import os
import socket

import pytest

from cpo_ray.artifacts import find_artifact, make_artifact
from cpo_ray.artifacts.store import Store
from cpo_ray.cluster.session import LazyRay
from cpo_ray.config import RunConfig
from cpo_ray.run_directory import Run


@pytest.fixture
def two_runs(tmp_path):
    """Two runs that share a store."""
    config = RunConfig(name="run", cluster={"artifact_store": tmp_path / "store"})
    runs = [Run(config, tmp_path / name, LazyRay(config.cluster)) for name in ("one", "two")]
    for run in runs:
        run.root.mkdir()
    return runs


def builder(calls, text="words"):
    def build(out):
        calls.append(out)
        (out / "inner").mkdir()
        (out / "inner" / "file.txt").write_text(text)
        return {"rows": 3}

    return build


def test_another_run_takes_over_what_one_has_made(two_runs, capsys):
    one, two = two_runs
    calls = []
    first = one.make("groups/train", {"beta": 5}, builder(calls))
    second = two.make("groups/train", {"beta": 5}, builder(calls))
    assert len(calls) == 1
    assert first.fingerprint == second.fingerprint
    assert second.manifest.summary == {"rows": 3}
    assert (two.root / "groups" / "train" / "inner" / "file.txt").read_text() == "words"
    assert "shared groups/train: another run has made it" in capsys.readouterr().out


def test_files_are_copied_where_hard_links_are_impossible_and_the_line_says_so(two_runs, capsys, monkeypatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    one, two = two_runs
    one.make("data", {"seed": 1}, builder([]))
    monkeypatch.setattr(os, "link", refuse)
    copied = two.make("data", {"seed": 1}, builder([]))
    assert "copied, without hard links" in capsys.readouterr().out
    monkeypatch.undo()
    (store,) = Store(one.config.cluster.artifact_store).every("data")
    assert not Store.is_linked(store, copied)
    assert Store.is_linked(store, find_artifact(one.root, "data"))


def test_what_another_run_has_made_is_available_and_not_yet_current(two_runs):
    one, two = two_runs
    one.make("data", {"seed": 1}, builder([]))
    assert (one.is_current("data", {"seed": 1}), two.is_current("data", {"seed": 1})) == (True, False)
    assert two.is_available("data", {"seed": 1})
    assert not two.is_available("data", {"seed": 2})


def test_other_inputs_are_made(two_runs):
    one, two = two_runs
    calls = []
    one.make("groups/train", {"beta": 5}, builder(calls))
    two.make("groups/train", {"beta": 6}, builder(calls))
    assert len(calls) == 2


def test_a_kept_artifact_outlives_its_run(two_runs, tmp_path):
    one, _ = two_runs
    one.make("data", {"seed": 1}, builder([]))
    one.make("data", {"seed": 2}, builder([], "other words"))  # replaces the run's own
    assert find_artifact(one.root, "data").manifest.inputs == {"seed": 2}
    store = Store(tmp_path / "store")
    assert [artifact.manifest.inputs["seed"] for artifact in store.every("data")] in ([1, 2], [2, 1])
    assert (store.find("data", {"seed": 1}).path / "inner" / "file.txt").read_text() == "words"


def test_changed_content_is_made_again(two_runs, tmp_path):
    one, two = two_runs
    calls = []
    one.make("data", {"seed": 1}, builder(calls))
    kept = next(Store(tmp_path / "store").every("data"))
    (kept.path / "inner" / "file.txt").unlink()
    (kept.path / "inner" / "file.txt").write_text("WORDS")
    made = two.make("data", {"seed": 1}, builder(calls))
    assert len(calls) == 2
    assert (made.path / "inner" / "file.txt").read_text() == "words"
    assert Store(tmp_path / "store").find("data", {"seed": 1}) is not None


@pytest.mark.parametrize("damage", ["file.txt is shorter", "file.txt is gone", "no manifest"])
def test_one_damaged_entry_stops_no_run(two_runs, tmp_path, damage):
    one, two = two_runs
    calls = []
    one.make("data", {"seed": 1}, builder(calls))
    one.make("data", {"seed": 2}, builder(calls))
    store = Store(tmp_path / "store")
    damaged = next(artifact for artifact in store.every("data") if artifact.manifest.inputs == {"seed": 1}).path
    spoiled = damaged / ("manifest.json" if damage == "no manifest" else "inner/file.txt")
    spoiled.unlink()
    if damage != "file.txt is gone":
        spoiled.write_text("{")
    assert [artifact.manifest.inputs for artifact in store.every("data")] == [{"seed": 2}]
    assert two.find_similar("data", {"seed": 1}, "beta") is None
    assert two.make("data", {"seed": 1}, builder(calls)).manifest.inputs == {"seed": 1}
    assert len(calls) == 3
    assert {artifact.manifest.inputs["seed"] for artifact in store.every("data")} == {1, 2}


def test_what_a_killed_process_of_the_same_number_left_is_cleared(two_runs, tmp_path):
    one, _ = two_runs
    one.make("data", {"seed": 1}, builder([]))
    store = Store(tmp_path / "store")
    (kept,) = store.every("data")
    artifact = find_artifact(one.root, "data")
    partial = kept.path.with_name(f".{kept.path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    kept.path.rename(partial)
    (partial / "manifest.json").unlink()
    (partial / "stray.txt").write_text("half")
    store.add(artifact)
    (again,) = store.every("data")
    assert {path.name for path in again.path.rglob("*")} == {"inner", "file.txt", "manifest.json"}
    assert not partial.exists()


def test_what_a_killed_build_left_does_not_mix_in(two_runs):
    one, two = two_runs
    one.make("data", {"seed": 1}, builder([]))

    def killed(out):
        (out / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_artifact(two.root, "data", {"seed": 1}, killed)
    assert set(two.make("data", {"seed": 1}, builder([])).manifest.files) == {"inner/file.txt"}


def test_of_two_that_keep_the_same_the_first_stays(tmp_path):
    store = Store(tmp_path / "store")
    (tmp_path / "run").mkdir()
    artifact = make_artifact(tmp_path / "run", "data", {"seed": 1}, builder([]))
    store.add(artifact)
    store.add(artifact)
    assert len(list((tmp_path / "store" / "data").iterdir())) == 1


def test_an_artifact_that_differs_in_such_keys_alone_is_found(two_runs):
    one, two = two_runs
    inputs = {"sampling": {"embedder": "minilm", "top_k": 50}, "seed": 1}
    one.make("groups/train", inputs, builder([]))
    other = json.loads(json.dumps(inputs))
    other["sampling"]["embedder"] = "larger"
    other["embedder"] = "its hash"
    keys = ("sampling.embedder", "embedder")
    for run in (one, two):
        assert run.find_similar("groups/train", other, *keys).manifest.inputs == inputs
        assert run.find_similar("groups/train", other, "sampling.embedder") is None
        assert run.find_similar("groups/train", other | {"seed": 2}, *keys) is None
