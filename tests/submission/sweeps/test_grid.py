import pytest

from cpo_ray.errors import ConfigError
from cpo_ray.submission.sweeps.grid import load_sweep, select_runs


def test_every_arm_runs_once_per_seed_and_seeds_come_first(make_sweep):
    sweep = make_sweep()
    assert [(run.arm, run.seed) for run in sweep.runs] == [("low", 1), ("high", 1), ("low", 2), ("high", 2)]
    first = sweep.runs[0].config
    assert (first.name, first.seed, first.objective.beta, first.objective.ranked) == ("betas-low-1", 1, 1.0, False)


def test_a_grid_multiplies_the_arms(make_sweep):
    sweep = make_sweep(arms={"plain": {}}, grid={"objective.beta": [0.5, 5], "objective.ranked": [True, False]})
    assert sweep.arms == (
        "plain-beta-0_5-ranked-true",
        "plain-beta-0_5-ranked-false",
        "plain-beta-5-ranked-true",
        "plain-beta-5-ranked-false",
    )
    assert [run.config.objective.beta for run in sweep.first_of_arm()] == [0.5, 0.5, 5, 5]


def test_settings_apply_to_all_arms_and_an_arm_replaces_them(make_sweep):
    sweep = make_sweep(
        settings={"training.steps": 7, "objective.beta": 2.0}, arms={"a": {}, "b": {"objective.beta": 3}}
    )
    runs = list(sweep.first_of_arm())
    assert [run.config.training.steps for run in runs] == [7, 7]
    assert [run.config.objective.beta for run in runs] == [2.0, 3.0]


def test_an_arm_that_changes_a_section_of_all_arms_changes_no_other_arm(make_sweep):
    arms = {"a": {"objective.mle_weight": 1.0}, "b": {}}
    sweep = make_sweep(settings={"objective": {"beta": 2.0}}, arms=arms)
    objectives = [run.config.objective for run in sweep.first_of_arm()]
    assert [(item.beta, item.mle_weight, item.ranked) for item in objectives] == [(2.0, 1.0, True), (2.0, 0.0, True)]
    assert sweep.runs[1].overrides == {"objective": {"beta": 2.0}}


def test_an_arms_value_replaces_a_whole_section(make_sweep):
    sweep = make_sweep(arms={"few": {"sampling.negatives": {"batch": 1, "meanfield": 0, "truncation": 0}}})
    assert sweep.runs[0].config.sampling.negatives.by_kind == {"batch": 1}


def test_fingerprints_depend_on_what_changes_results_alone(make_sweep):
    def fingerprints(**keys):
        return [run.arm_fingerprint for run in make_sweep(**keys).runs]

    low, high, low_again, _ = fingerprints()
    assert low == low_again != high
    assert fingerprints(settings={"training.checkpoint_every": 3}) == fingerprints(name="other") == fingerprints()
    assert len({run.fingerprint for run in make_sweep().runs}) == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"arms": {"low": {"objective.betta": 1}}}, "arm low:\n  unknown key `objective.betta`; did you mean `objective.beta`"),
        ({"grid": {"trainign.steps": [1]}}, "unknown key `trainign`; did you mean `training`"),
        ({"settings": {"objective.beta.x": 1}, "arms": {"a": {}}}, "objective.beta"),
        ({"arms": {"low": {"objective.beta": -1}}}, "objective.beta: Input should be greater than 0"),
        ({"arms": {"low": {"seed": 3}}}, "seed is set by the sweep"),
        ({"arms": {"low": {}, "high": {}}}, "arms low and high have the same configuration"),
        ({"grid": {"objective.beta": [1, 2]}}, "arm low sets objective.beta, which the grid varies"),
        ({"seeds": []}, "seeds: Tuple should have at least 1 item"),
        ({"seeds": [1, 1]}, "seeds: 1 is named twice"),
        ({"seedz": [1]}, "seedz: unknown key of a sweep; did you mean `seeds`?"),
        ({"arms": {"Low": {}}}, "String should match pattern"),
        ({"base": "absent.yaml"}, "absent.yaml"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_by_name(write_sweep, keys, message):
    with pytest.raises(ConfigError) as error:
        load_sweep(write_sweep(**keys))
    assert message in str(error.value)


def test_two_points_of_a_grid_with_one_name_are_refused(write_sweep):
    grid = {"objective.beta": [0.5, "0_5"]}
    with pytest.raises(ConfigError, match="two arms of the grid would have the name low-beta-0_5"):
        load_sweep(write_sweep(arms={"low": {}}, grid=grid))


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        ([], [("low", 1), ("high", 1), ("low", 2), ("high", 2)]),
        (["high"], [("high", 1), ("high", 2)]),
        (["2"], [("low", 2), ("high", 2)]),
        (["high,2"], [("high", 2)]),
        (["low,1", "high, 2"], [("low", 1), ("high", 2)]),
    ],
)
def test_only_selects_runs(make_sweep, only, chosen):
    assert [run.key for run in select_runs(make_sweep(), only)] == chosen


@pytest.mark.parametrize(
    ("only", "message"),
    [("hihg", "there is no arm 'hihg'; did you mean 'high'?"), ("low,3", "3 is not among the seeds \\[1, 2\\]")],
)
def test_only_refuses_what_does_not_exist(make_sweep, only, message):
    with pytest.raises(ConfigError, match=message):
        select_runs(make_sweep(), [only])


def test_the_files_of_a_sweep_are_those_of_the_base_too(make_sweep, tmp_path):
    sweep = make_sweep()
    assert sweep.config_files == (tmp_path / "sweep.yaml", tmp_path / "base.yaml")
