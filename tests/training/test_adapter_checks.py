import importlib.machinery
import importlib.util

import pytest
from transformers import GPT2Config, LlamaConfig

from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ConfigError
from cpo_ray.training.adapter_checks import check_adapter


def check(**tree):
    return check_adapter(parse_config({"name": "x", **tree}, "x.yaml"))


@pytest.fixture
def model(tmp_path):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1}
    LlamaConfig(vocab_size=64, max_position_embeddings=512, **shape).save_pretrained(tmp_path)
    return {"path": str(tmp_path)}


def test_targets_are_checked_before_anything_is_trained(model):
    check()
    check(adapter={})
    check(adapter={"targets": ["q_proj", "down_proj"]}, model=model)
    check(adapter={"targets": ["not_here"]}, model={"path": "owner/not-on-this-machine"})
    with pytest.raises(
        ConfigError, match=r"adapter\.targets: qproj does not exist in LlamaForCausalLM; the nearest: .*q_proj"
    ):
        check(adapter={"targets": ["qproj"]}, model=model)
    with pytest.raises(ConfigError, match="q_proj does not exist in GPT2LMHeadModel; the nearest: c_proj"):
        check(adapter={"targets": ["q_proj"]}, model={"architecture": "gpt2"})


def test_nf4_needs_a_package_or_cuda_devices(model, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    line = check(adapter={"quantize": "nf4"}, model=model, cluster={"gpus_per_worker": 1})
    assert "needs the package bitsandbytes on every machine of the run, and it is not installed here" in line
    assert "make install GPU=1" in line
    with pytest.raises(ConfigError, match=r"quantize nf4 needs CUDA devices \(this run has none\), or on CPUs"):
        check(adapter={"quantize": "nf4"}, model=model, cluster={"gpus": 0})


def test_nf4_is_for_linear_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: importlib.machinery.ModuleSpec("bitsandbytes", None))
    GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError, match=r"nf4: GPT2LMHeadModel has no layers of the kind nn\.Linear: leave adapter\.quan"
    ):
        check(adapter={"quantize": "nf4"}, model={"path": str(tmp_path)})
