from cpo_ray.artifacts import find_artifact, make_artifact
from cpo_ray.config import RunConfig
from cpo_ray.pipeline import run_pipeline


def test_the_report_lays_cards_into_the_models_and_nothing_becomes_stale(tmp_path, capsys):
    def build(out):
        (out / "config.json").write_text("{}")
        return {}

    before = {name: make_artifact(tmp_path, f"models/{name}", {}, build) for name in ("mle", "cpo")}
    for again in (False, True):
        run_pipeline(RunConfig(name="x"), tmp_path, first="report", last="report", command="x.yaml")
        assert find_artifact(tmp_path, "report") is not None
        for name, artifact in before.items():
            assert (artifact.path / "README.md").read_text().splitlines()[-1] == "</details>"
            assert find_artifact(tmp_path, f"models/{name}").fingerprint == artifact.fingerprint
        assert ("reused" in capsys.readouterr().out) == again


def test_a_card_that_was_deleted_comes_back(tmp_path):
    card = make_artifact(tmp_path, "models/cpo", {}, lambda out: {}).path / "README.md"
    for _ in range(2):
        run_pipeline(RunConfig(name="x"), tmp_path, first="report", last="report", command="x.yaml")
        assert card.is_file()
        card.unlink()


def test_the_report_is_made_again_for_the_card_of_a_model_that_is_not_evaluated(tmp_path, capsys):
    config = RunConfig.model_validate({"name": "x", "generation": {"models": ["mle"]}})
    for seed in (1, 2):
        make_artifact(tmp_path, "models/cpo", {"seed": seed}, lambda out: {})
        run_pipeline(config, tmp_path, first="report", last="report", command="x.yaml")
        assert "made report" in capsys.readouterr().out
