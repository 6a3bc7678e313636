import json
from typing import Any

from cpo_ray.config import RunConfig
from cpo_ray.data import examples
from cpo_ray.run_directory import open_run
from cpo_ray.stages import perform


def test_data_are_made_again_where_the_tokenizer_in_a_directory_changed(tmp_path, monkeypatch):
    made: list[Any] = []
    monkeypatch.setattr(examples, "prepare_examples", lambda config, out: made.append(out) or {})
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    config = RunConfig.model_validate({"name": "x", "data": {"tokenizer": {"path": str(tokenizer)}}})
    with open_run(config, tmp_path / "run", accept_changes=False) as run:
        for vocabulary, times in (("a", 1), ("a", 1), ("a b", 2)):
            (tokenizer / "tokenizer.json").write_text(vocabulary)
            perform("data", run)
            assert len(made) == times


def test_data_of_a_version_that_ended_cut_responses_with_eos_are_made_again(tmp_path, monkeypatch, capsys):
    made: list[Any] = []
    monkeypatch.setattr(examples, "prepare_examples", lambda config, out: made.append(out) or {})
    config = RunConfig.model_validate({"name": "x"})
    with open_run(config, tmp_path / "run", accept_changes=False) as run:
        perform("data", run)
        manifest = tmp_path / "run/data/manifest.json"
        content = json.loads(manifest.read_text())
        content["inputs"]["also"] = {"files": None, "tokenizer": None}
        manifest.write_text(json.dumps(content))
        capsys.readouterr()
        perform("data", run)
        perform("data", run)
    assert len(made) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "made data again: EOS of cut responses changed" in printed
    assert "reused data" in printed


def test_embedded_text_of_another_python_makes_the_data_stale(tmp_path, monkeypatch):
    made: list[Any] = []
    monkeypatch.setattr(examples, "prepare_examples", lambda config, out: made.append(out) or {})
    config = RunConfig.model_validate({"name": "x", "data": {"source": "python_docs"}})
    with open_run(config, tmp_path / "run", accept_changes=False) as run:
        for version, times in (("3.11.7", 1), ("3.11.7", 1), ("3.12.1", 2)):
            monkeypatch.setattr("platform.python_version", lambda version=version: version)
            perform("data", run)
            assert len(made) == times
