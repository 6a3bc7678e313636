import pytest


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A configuration file in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("# A small run:\n#\n#     cpo-ray run x.yaml\nname: x\n")
    return "x.yaml"


@pytest.fixture
def pipeline_calls(monkeypatch):
    """The arguments of each call of the pipeline, which runs nothing."""
    calls = []

    def record(config, root, **options):
        calls.append({"config": config, "root": root} | options)

    monkeypatch.setattr("cpo_ray.commands.run.run_pipeline", record)
    return calls
