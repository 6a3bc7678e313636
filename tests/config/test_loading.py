import pytest

from cpo_ray.config.loading import load_config, read_tree
from cpo_ray.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_file_contains_only_its_changes(write):
    write("base.yaml", "name: base\ntraining: {steps: 5, learning_rate: 1.0e-3}\nmerging: {alphas: [0.1, 0.9]}\n")
    path = write(
        "runs/mine.yaml", "extends: ../base.yaml\nname: mine\ntraining: {steps: 7}\nmerging: {alphas: [0.5]}\n"
    )
    config = load_config(path)
    assert config.name == "mine"
    assert (config.training.steps, config.training.learning_rate) == (7, 1e-3)
    assert config.merging.alphas == (0.5,), "a list replaces, it does not append"


def test_a_chain_of_files_is_followed_and_overrides_come_last(write):
    write("a.yaml", "name: a\nseed: 1\ntraining: {steps: 1}\n")
    write("b.yaml", "extends: a.yaml\nname: b\nseed: 2\n")
    path = write("c.yaml", "extends: b.yaml\nname: c\n")
    assert read_tree(path) == {"name": "c", "seed": 2, "training": {"steps": 1}}
    assert load_config(path, ("training.steps=9",)).training.steps == 9


def test_null_resets_an_extended_key(write):
    write("a.yaml", "name: a\nsampling: {rows: 64}\nmle: {scheduled_sampling: {sequences: 3}}\n")
    config = load_config(write("b.yaml", "extends: a.yaml\nsampling: {rows: null}\nmle: {scheduled_sampling: null}\n"))
    assert config.sampling.rows is None
    assert config.mle.scheduled_sampling is None


def test_files_that_extend_each_other_are_reported_as_a_chain(write):
    write("a.yaml", "name: a\nextends: sub/b.yaml\n")
    path = write("sub/b.yaml", "name: b\nextends: ../a.yaml\n")
    with pytest.raises(ConfigError, match=r"b\.yaml extends .*a\.yaml extends .*b\.yaml: .*cannot extend itself"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot extend itself"):
        load_config(write("self.yaml", "name: c\nextends: self.yaml\n"))


def test_a_missing_base_is_reported_as_a_chain(write):
    write("a.yaml", "name: a\nextends: gone.yaml\n")
    path = write("b.yaml", "name: b\nextends: a.yaml\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert (
        message.index("b.yaml extends")
        < message.index("a.yaml extends")
        < message.index("gone.yaml: there is no such file")
    )


@pytest.mark.parametrize("value", ["[a.yaml, b.yaml]", "3", "''", "null", "{path: a.yaml}"])
def test_extends_names_one_file(write, value):
    with pytest.raises(ConfigError, match=r"x\.yaml: extends must be the path of one YAML file"):
        load_config(write("x.yaml", f"name: x\nextends: {value}\n"))


@pytest.mark.parametrize(("text", "words"), [("- 1\n", "has no keys"), ("a: [", "is not YAML")])
def test_a_bad_base_is_named(write, text, words):
    write("bad.yaml", text)
    with pytest.raises(ConfigError, match=rf"x\.yaml extends .*bad\.yaml {words}"):
        load_config(write("x.yaml", "name: x\nextends: bad.yaml\n"))


def test_a_folder_is_not_a_configuration(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)


def test_a_secret_in_the_base_is_refused(write):
    write("a.yaml", "name: a\njudge: {api_key: abc}\n")
    with pytest.raises(ConfigError, match="environment variable"):
        load_config(write("b.yaml", "name: b\nextends: a.yaml\n"))
