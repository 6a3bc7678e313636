import pytest

from cpo_ray.checks.recipe import recipe_warnings, way_to_the_data
from cpo_ray.config import RunConfig

SAMPLED = {"autoregressive": 3, "batch": 0, "meanfield": 0, "truncation": 0}


def recipe(objective=None, **sampling):
    return RunConfig.model_validate(
        {"name": "x", "sampling": {"negatives": SAMPLED} | sampling, "objective": objective or {}}
    )


def test_samples_of_the_reference_at_beta_5_go_a_fifth_of_the_way():
    (warning,) = recipe_warnings(recipe({"ranked": False}))
    assert "negatives come from the reference and objective.beta is 5" in warning
    assert "20% of the way from the reference to the data, where MLE goes all of it" in warning
    assert "docs/theory.md" in warning
    assert "apart from what the ranks of the negatives add" in recipe_warnings(recipe())[0]
    assert "ranks" not in recipe_warnings(recipe(negatives=SAMPLED | {"autoregressive": 1}))[0]  # K = 2


def test_greedy_answers_and_truncations_alone_have_no_finite_optimum():
    greedy = SAMPLED | {"autoregressive": 0, "greedy": 1}
    for negatives in (greedy, greedy | {"truncation": 2}, greedy | {"greedy": 0, "truncation": 2}):
        (warning,) = recipe_warnings(recipe(negatives=negatives))
        assert "no finite optimum" in warning
        assert "objective.mle_weight" in warning
    assert recipe_warnings(recipe({"mle_weight": 1.0}, negatives=greedy)) == []
    assert recipe_warnings(recipe({"label_smoothing": 0.1}, negatives=greedy)) == []
    assert recipe_warnings(recipe(negatives=greedy | {"batch": 1})) == []


def test_every_kind_that_vllm_samples_counts():
    kinds = {"wide": {"top_k": 0}, "near": {"temperature": 0.95, "top_p": 0.98}}
    assert recipe_warnings(recipe(negatives=SAMPLED | {"wide": 1, "near": 2}, kinds=kinds)) != []


def test_the_policy_s_own_samples_go_less_far():
    config = recipe(stream=True, refresh_steps=10)
    assert way_to_the_data(config) == pytest.approx(1 / 6)
    assert "17% of the way" in recipe_warnings(config)[0]


def test_every_reference_goes_a_part_of_the_way_that_is_left():
    rounds = recipe({"ranked": False}).model_copy(update={"rounds": 3})
    assert way_to_the_data(rounds) == pytest.approx(1 - 0.8**3)
    (warning,) = recipe_warnings(rounds)
    assert "negatives come from the reference, which the policy becomes 2 times, and objective.beta is 5" in warning
    assert recipe_warnings(rounds.model_copy(update={"rounds": 4})) == []  # 59%
    moving = recipe(stream=True, refresh_steps=100, refresh_reference=True)  # 300 steps: three references
    assert way_to_the_data(moving) == pytest.approx(1 - 0.8**3)
    assert way_to_the_data(recipe({"beta": 0.4}).model_copy(update={"rounds": 2})) == 1


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(name="x"),  # MixN
        recipe({"beta": 1.0}),
        recipe({"beta": 2.0}),
        recipe({"length_normalised": True}),
        recipe({"mle_weight": 1.0}),
        recipe({"loss": "infonca"}),
        recipe(temperature=0.7),
        recipe(temperature=1.4),
        recipe(top_k=5),
        recipe(top_p=0.9),
        recipe(negatives=SAMPLED | {"greedy": 1}),
        recipe(negatives=SAMPLED | {"hot": 1}, kinds={"hot": {"temperature": 1.4}}),
        recipe(negatives=SAMPLED | {"batch": 1}),
    ],
)
def test_no_warning_where_it_does_not_apply(config):
    assert recipe_warnings(config) == []
