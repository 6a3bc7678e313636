import pytest

from cpo_ray.config.loading import parse_config
from cpo_ray.stages import expected_artifacts
from cpo_ray.submission.sweeps.sharing import artifact_keys, plan_work

STAGES = ["data", "reference", "sampling", "cpo", "mle", "merging", "generation"]


def common(**changes):
    """The artifacts that a changed configuration shares with the default one."""
    default = parse_config({"name": "a", "merging": {"alphas": [0.5]}}, "test")
    tree = default.model_dump()
    for dotted, value in changes.items():
        *parents, leaf = dotted.split("__")
        section = tree
        for parent in parents:
            section = section[parent]
        section[leaf] = value
    one, other = artifact_keys(default), artifact_keys(parse_config(tree, "test"))
    return {name for name in EVERYTHING if one[name] == other[name]}


START = {"data", "models/initial", "models/reference"}
EVERYTHING = START | {"groups/train", "models/cpo", "models/mle", "models/merged-0.50", "mauve"} | {
    f"{kind}/{model}" for kind in ("generations", "verdicts") for model in ("reference", "mle", "cpo", "merged-0.50")
}  # fmt: skip
OF_MLE = {"models/mle", "generations/mle", "verdicts/mle", "generations/reference", "verdicts/reference"}


def test_every_artifact_has_a_key():
    config = parse_config({"name": "a"}, "test")
    assert artifact_keys(config).keys() == expected_artifacts(config).keys()


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"training__checkpoint_every": 7}, EVERYTHING),
        ({"name": "b"}, EVERYTHING),
        ({"seed": 3}, set()),
        ({"objective__beta": 1.0}, START | OF_MLE | {"groups/train"}),
        ({"sampling__negatives": {"batch": 2}}, START | OF_MLE),
        ({"sampling__rows": 64}, START | {"generations/reference", "verdicts/reference"}),
        ({"training__learning_rate": 2e-5}, START | {"groups/train", "generations/reference", "verdicts/reference"}),
        ({"adapter": {}}, START | {"groups/train", "generations/reference", "verdicts/reference"}),
        ({"mle__learning_rate": 2e-5}, START | {"groups/train", "models/cpo"} | {
            f"{kind}/{model}" for kind in ("generations", "verdicts") for model in ("reference", "cpo")}),
    ],
)  # fmt: skip
def test_arms_share_what_does_not_depend_on_what_they_change(changes, shared):
    assert common(**changes) == shared


def test_a_shared_artifact_is_made_by_the_first_run_alone(make_sweep, tmp_path):
    sweep = make_sweep(seeds=[1])
    work = plan_work(sweep.runs, sweep.runs, tmp_path, STAGES)
    first, second = ({step.stage: step for step in work[run.key]} for run in sweep.runs)
    assert [step.stage for step in work["low", 1] if step.makes] == STAGES
    assert first["data"].shares == ()
    assert [stage for stage, step in second.items() if step.makes] == ["cpo", "merging", "generation"]
    assert second["generation"].shares == ("generations/reference", "generations/mle")


def test_what_a_run_has_is_not_made_again(make_sweep, tmp_path):
    sweep = make_sweep(seeds=[1])
    low, high = sweep.runs
    for name in ("data", "models/reference"):
        (low.root(tmp_path) / name).mkdir(parents=True)
        (low.root(tmp_path) / name / "manifest.json").touch()
    work = plan_work(sweep.runs, [high], tmp_path, STAGES)["high", 1]
    made = {name for step in work for name in step.makes}
    assert {"models/initial", "groups/train", "models/mle"} <= made
    assert not made & {"data", "models/reference"}
    work = plan_work(sweep.runs, [low], tmp_path, STAGES)["low", 1]
    assert "data" not in [step.stage for step in work]
