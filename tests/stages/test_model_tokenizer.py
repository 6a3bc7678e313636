"""Stages `data` and `reference` with a pretrained model: its tokenizer, and pairs that do not fit."""

from pathlib import Path

import pytest
from safetensors.numpy import save_file

from cpo_ray.cluster.session import LazyRay
from cpo_ray.config import RunConfig
from cpo_ray.data import examples
from cpo_ray.data.tokenization import load_tokenizer, train_tokenizer
from cpo_ray.errors import ConfigError
from cpo_ray.run_directory import open_run
from cpo_ray.stages import perform
from cpo_ray.training import trainer
from tests.checks.test_model_fit import TEXTS, write_model


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model", train_tokenizer(TEXTS, 280))


def configure(model, **data):
    return RunConfig.model_validate(
        {"name": "x", "model": {"path": str(model)}, "data": data, "tracking": {"tensorboard": False}}
    )


def add_tokens(folder, *tokens):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.save_pretrained(folder)


def test_data_are_made_again_where_the_model_s_tokenizer_changed_but_not_where_its_weights_did(
    model, tmp_path, monkeypatch
):
    made = []
    monkeypatch.setattr(examples, "prepare_examples", lambda config, out: made.append(out) or {})
    with open_run(configure(model), tmp_path / "run", accept_changes=False) as run:
        perform("data", run)
        save_file({}, model / "model.safetensors")
        perform("data", run)
        assert len(made) == 1
        add_tokens(model, "<|user|>")
        perform("data", run)
        assert len(made) == 2


def test_stage_data_refuses_a_pair_that_does_not_fit_and_uses_the_model_s_tokenizer(model, tmp_path):
    sizes = {"train_rows": 20, "validation_rows": 2, "test_rows": 3}
    add_tokens(model, *(f"<|{number}|>" for number in range(41)))
    with open_run(configure(model, **sizes), tmp_path / "run", accept_changes=False) as run:
        with pytest.raises(ConfigError, match=r"has 321 tokens with ids up to 320, but .* has 320 embeddings"):
            perform("data", run)
        write_model(model, None, vocab_size=384)
        perform("data", run)
    assert len(load_tokenizer(str(tmp_path / "run/data/tokenizer"))) == 321


def test_the_reference_is_checked_again_and_gets_the_tokenizer_of_the_data(model, tmp_path, monkeypatch):
    tasks = []

    def train(task, *_):
        tasks.append(task)
        return {}

    monkeypatch.setattr(LazyRay, "ensure", lambda *_: None)
    monkeypatch.setattr(trainer, "train_model", train)
    with open_run(configure(model), tmp_path / "run", accept_changes=False) as run:

        def write_tokenizer(out):
            load_tokenizer(str(model)).save_pretrained(out / "tokenizer")
            return {}

        run.make("data", {}, write_tokenizer)
        write_model(model, None, max_position_embeddings=128)
        with pytest.raises(ConfigError, match="exceeds the 128 positions"):
            perform("reference", run)
        write_model(model, None)
        perform("reference", run)
    assert [Path(task.tokenizer) for task in tasks] == [tmp_path / "run/data/tokenizer"]
