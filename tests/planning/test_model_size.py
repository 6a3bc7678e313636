import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

from cpo_ray.config import ModelConfig
from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ConfigError
from cpo_ray.planning.activations import BlockShape, block_bytes
from cpo_ray.planning.model_size import count_parameters, describe_model
from tests.data.fake_hub import serve_hub

VOCABULARY = 1024


def config(**sections):
    return parse_config({"name": "x", **sections}, "test")


def test_gpt2_has_124_million_parameters():
    gpt2 = ModelConfig(architecture="gpt2", hidden_size=768, layers=12, heads=12, intermediate_size=3072, context=1024)
    assert count_parameters(gpt2, 50_257) == 124_439_808


def test_openllama_3b_has_3426_million_parameters():
    openllama = ModelConfig(
        hidden_size=3200, layers=26, heads=32, intermediate_size=8640, context=2048, tie_embeddings=False
    )
    assert count_parameters(openllama, 32_000) == 3_426_473_600


def test_the_default_model_by_hand():
    embeddings, block, norm = 1024 * 160, 4 * 160**2 + 3 * 160 * 448 + 2 * 160, 160
    shape = describe_model(config(), VOCABULARY, None)
    assert shape.parameters == embeddings + 4 * block + norm == 1_435_040
    assert shape.block_bytes == 2 * 12 * 160 + 4 * 4 * 160 + 16 * 448 + 4 * 5 + 8


def llama_config(folder):
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    ).save_pretrained(folder)


def test_a_local_model_without_weights_is_counted_by_its_config(tmp_path):
    llama_config(tmp_path)
    shape = describe_model(config(model={"path": str(tmp_path)}), VOCABULARY, None)
    assert shape.parameters == 2 * 64 * 32 + 2 * (4 * 32**2 + 3 * 32 * 48 + 2 * 32) + 32
    assert (shape.hidden_size, shape.layers, shape.vocabulary) == (32, 2, 64)
    assert shape.block_bytes == block_bytes(BlockShape("llama", 32, 48, 2, 32), "fp32")
    assert shape.origin == f"the config of {tmp_path}"


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_a_local_model_is_counted_by_the_headers_of_its_safetensors(tmp_path, shard):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16))
    gpt2.save_pretrained(tmp_path, max_shard_size=shard)
    shape = describe_model(config(model={"path": str(tmp_path)}), VOCABULARY, None)
    assert shape.parameters == gpt2.num_parameters()
    assert shape.origin == f"the safetensors of {tmp_path}"


def test_buffers_in_a_model_file_are_no_parameters(tmp_path):
    """GPT-2 on the hub has its causal mask among its tensors, and names without their prefix."""
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16))
    gpt2.config.save_pretrained(tmp_path)
    tensors = {name.removeprefix("transformer."): tensor.detach().clone() for name, tensor in gpt2.named_parameters()}
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 16, 16)}, tmp_path / "model.safetensors")
    shape = describe_model(config(model={"path": str(tmp_path)}), VOCABULARY, None)
    assert shape.parameters == gpt2.num_parameters()


def test_the_shape_of_a_missing_model_is_guessed_from_its_size(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = config(model={"path": "nobody/has-this"})
    with pytest.raises(ConfigError, match="--parameters N"):
        describe_model(run, VOCABULARY, None)
    shape = describe_model(run, VOCABULARY, 12 * 24**3 * 128**2)
    width = 24 * 128
    assert (shape.layers, shape.hidden_size) == (24, width)
    assert shape.block_bytes == block_bytes(BlockShape("llama", width, 8 * width // 3, 24, width), "fp32")


@pytest.fixture
def use_hub(monkeypatch):
    """Makes huggingface_hub of this process use a server, whose environment variables it would read at its import."""

    def use(environment):
        endpoint, cache = environment["HF_ENDPOINT"], environment["HF_HOME"]
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        values = {"ENDPOINT": endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": cache}
        for name, value in values.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)

    return use


def test_a_hub_model_is_counted_by_the_headers_of_its_safetensors(tmp_path, use_hub):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16))
    gpt2.save_pretrained(tmp_path / "model")
    files = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    with serve_hub("some/model", files, tmp_path / "home", kind="models") as hub:
        use_hub(hub)
        shape = describe_model(config(model={"path": "some/model"}), VOCABULARY, None)
        with pytest.raises(ConfigError, match=r"no/such-model: .* give --parameters N .* 404"):
            describe_model(config(model={"path": "no/such-model"}), VOCABULARY, None)
    assert (shape.parameters, shape.layers) == (gpt2.num_parameters(), 2)
    assert shape.origin == "the safetensors of some/model"
    assert not list((tmp_path / "home").rglob("*.safetensors"))  # its weights stay there


def test_a_hub_model_without_safetensors_is_counted_by_its_config(tmp_path, use_hub):
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    ).save_pretrained(tmp_path)
    files = {"config.json": (tmp_path / "config.json").read_bytes(), "pytorch_model.bin": b""}
    with serve_hub("some/pickle", files, tmp_path / "home", kind="models") as hub:
        use_hub(hub)
        shape = describe_model(config(model={"path": "some/pickle"}), VOCABULARY, None)
    assert shape.origin == "the config of some/pickle"
    assert shape.parameters == 2 * 64 * 32 + 2 * (4 * 32**2 + 3 * 32 * 48 + 2 * 32) + 32
