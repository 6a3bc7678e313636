import json
from dataclasses import replace
from pathlib import Path

from cpo_ray.config.loading import parse_config, read_tree
from cpo_ray.report.run_contents import read_run
from cpo_ray.report.study_quote import recipe_of, study_sentence

TREE = read_tree(Path(__file__).parents[2] / "configs" / "demo.yaml")
QUOTE = {"arm": "demo", "date": "2026-12-01", "seeds": 8, "value": -0.12, "low": -0.15, "high": -0.09}


def test_a_recipe_is_everything_that_answers_depend_on_but_the_seed():
    recipe = recipe_of(parse_config(TREE, "demo"))
    assert recipe_of(parse_config(TREE | {"seed": 3, "name": "other", "merging": {"alphas": [0.1]}}, "demo")) == recipe
    assert recipe_of(parse_config(TREE | {"objective": {"beta": 2.0}}, "demo")) != recipe
    assert recipe_of(parse_config(TREE | {"rounds": 1}, "demo")) != recipe


def test_only_a_run_of_a_measured_recipe_quotes_the_study(tmp_path):
    config = json.loads(parse_config(TREE, "demo").model_dump_json())
    run = replace(read_run(tmp_path), config=config)
    sentence = study_sentence(run, {recipe_of(parse_config(TREE, "demo")): QUOTE})
    assert sentence == (
        "Over 8 training seeds, the study of 2026-12-01 finds \N{MINUS SIGN}12.0 points of distance to the truth's repetition "
        "for this recipe against continued MLE (95% interval over seeds \N{MINUS SIGN}15.0 to \N{MINUS SIGN}9.0)."
    )
    assert study_sentence(run, {"another": QUOTE}) is None
    assert study_sentence(replace(run, config={"name": "old", "no_such_key": 1}), {"another": QUOTE}) is None
