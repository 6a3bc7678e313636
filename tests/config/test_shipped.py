from pathlib import Path

import pytest

from cpo_ray.config.loading import load_config, read_tree
from cpo_ray.config.shipped import copy_shipped, opening, shipped_configs
from cpo_ray.errors import ConfigError

SHIPPED = shipped_configs()


def test_folders_come_after_the_files_and_are_part_of_the_name():
    names = list(SHIPPED)
    assert "demo" in names
    assert "baselines/mixnr" in names
    assert "paper/table1" in names
    assert max(names.index(name) for name in names if "/" not in name) < min(
        names.index(name) for name in names if "/" in name
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_each_is_valid_and_named_like_its_file(name):
    needs_a_file = "path" not in read_tree(SHIPPED[name]).get("data", {})
    config = load_config(SHIPPED[name], ("data.path=somewhere.jsonl",) if needs_a_file else ())
    assert config.name == SHIPPED[name].stem


@pytest.mark.parametrize("name", [name for name in SHIPPED if "wiki" in name])
def test_answers_about_articles_are_limited_to_a_full_passage(name):
    """A model that sees few ends writes up to the limit: more than the passage that it is compared with, if it may."""
    data = load_config(SHIPPED[name], ("data.path=dump.xml.bz2", "data.tokenizer.path=gpt2")).data
    assert data.has_articles
    assert data.max_response_tokens == data.passages.tokens - data.passages.prompt_tokens(data.passages.tokens)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_starts_with_its_purpose_and_command(name):
    text = SHIPPED[name].read_text(encoding="utf-8")
    assert len(opening(text)) > 20
    assert f"#     cpo-ray run configs/{name}.yaml" in text


@pytest.mark.parametrize("name", ["demo", "dolly_small"])
def test_a_file_that_extends_nothing_is_copied_unchanged(name, tmp_path):
    target = copy_shipped(name, tmp_path / "mine.yaml")
    assert target.read_bytes() == SHIPPED[name].read_bytes()


def test_a_file_that_extends_another_is_copied_with_all_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = copy_shipped("baselines/bnr", None)
    assert target == Path("bnr.yaml")
    text = target.read_text(encoding="utf-8")
    assert text.startswith("# BNR: ")
    assert "extends" not in text.split("\nname:")[1]
    assert read_tree(target) == read_tree(SHIPPED["baselines/bnr"])
    assert load_config(target) == load_config(SHIPPED["baselines/bnr"])


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'paper/table1'"):
        copy_shipped("paper/tabel1", None)
