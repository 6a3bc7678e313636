"""Stage `generation` without an engine: which directories are served."""

import contextlib
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cpo_ray.artifacts import write_rows, write_table
from cpo_ray.cluster.session import LazyRay
from cpo_ray.config import RunConfig
from cpo_ray.data.tokenization import train_tokenizer
from cpo_ray.evaluation import generation
from cpo_ray.objective.adapters import LoraSettings, add_adapter, save_adapter
from cpo_ray.run_directory import open_run
from cpo_ray.serving import app
from cpo_ray.stages import perform
from cpo_ray.training.models import export_without_weights

CONFIG = RunConfig.model_validate(
    {"name": "x", "adapter": {"export": "adapter"}, "generation": {"models": ["reference", "cpo"]}}
)


@pytest.fixture
def base(tmp_path):
    """A tiny model with its tokenizer."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, **shape)).save_pretrained(tmp_path / "base")
    train_tokenizer(["one two three"], 300).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def write_adapter(base, out):
    """An adapter of the base in place of its weights. Returns the model with it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    add_adapter(model, LoraSettings(rank=2, alpha=4.0), seed=1)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data.fill_(0.1)
    export_without_weights(model, base, out)
    save_adapter(model, base, out / "adapter")
    return model


def test_an_adapter_is_served_as_a_whole_model(base, tmp_path, monkeypatch):
    """It is merged below the run for as long as it is served; what a killed run left there is removed."""
    tokens, made, served = torch.arange(1, 20)[None], {}, {}

    @contextlib.contextmanager
    def serve(models, *_):
        for name, folder in models.items():
            with torch.no_grad():
                served[name] = folder, AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
        yield SimpleNamespace(url="", key="")

    def answer(*, out, **_):
        write_rows(out, [{"response": "a"}])
        return {}

    monkeypatch.setattr(LazyRay, "ensure", lambda *_: None)
    monkeypatch.setattr(app, "serve_models", serve)
    monkeypatch.setattr(generation, "generate_answers", answer)
    root = tmp_path / "run"
    (root / "generations" / ".merged-left-over" / "cpo").mkdir(parents=True)
    with open_run(CONFIG, root, accept_changes=False) as run:
        table = pa.table({"id": ["a"]})
        run.make("data", {}, lambda out: write_table(out / "test" / "part.parquet", table) or {})
        run.make("models/reference", {}, lambda out: made.update(reference=write_whole(base, out)) or {})
        run.make("models/cpo", {}, lambda out: made.update(cpo=write_adapter(base, out)) or {})
        perform("generation", run)
    assert served["reference"][0] == root / "models" / "reference"
    assert served["cpo"][0].parent.parent == root / "generations"
    with torch.no_grad():
        for name, model in made.items():
            assert (model(tokens).logits - served[name][1]).abs().max() < 1e-5
    assert (served["reference"][1] - served["cpo"][1]).abs().max() > 1e-3
    assert {path.name for path in (root / "generations").iterdir()} == {"reference", "cpo"}


def write_whole(base, out):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(out)
    return model
