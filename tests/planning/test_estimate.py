import pytest

from cpo_ray.artifacts import make_artifact
from cpo_ray.cluster.accelerators import Device, find_device
from cpo_ray.config import ModelConfig, TrainingConfig
from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ConfigError
from cpo_ray.planning.estimate import (
    LM_HEAD_BYTES,
    ModelSize,
    TokenCounts,
    count_parameters,
    describe_model,
    make_plan,
    stage_work,
    training_memory,
)
from cpo_ray.planning.tables import describe_run


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
    assert describe_model(config(), None, None).parameters == embeddings + 4 * block + norm == 1_435_040


SHAPE = ModelSize(parameters=1_000_000, hidden_size=100, layers=10, vocabulary=1000, origin="test")


def test_memory_in_fp32_by_hand():
    training = TrainingConfig(workers=4, prompts_per_microbatch=16, precision="fp32")
    for stage, (weights, gradients, optimizer) in enumerate([(4, 4, 8), (4, 4, 2), (4, 1, 2), (1, 1, 2)]):
        memory = training_memory(SHAPE, training, stage, tokens=50)
        assert (memory.weights, memory.gradients, memory.optimizer) == (weights * 1e6, gradients * 1e6, optimizer * 1e6)
        assert memory.activations == 17 * 4 * 100 * 10 * 50 + LM_HEAD_BYTES
        assert memory.total == (weights + gradients + optimizer) * 1e6 + memory.activations


def test_memory_in_bf16_keeps_float32_weights_with_adam():
    training = TrainingConfig(workers=4, prompts_per_microbatch=16, precision="bf16")
    memory = training_memory(SHAPE, training, 2, tokens=1)
    assert (memory.weights, memory.gradients, memory.optimizer) == (2e6, 0.5e6, 3e6)


def test_a_truncation_costs_no_tokens():
    tokens = TokenCounts(prompt=90, response=10, origin="test")
    assert tokens.group(config()) == 90 + 10 * (12 - 3)


def test_work_by_hand():
    run = config(
        data={"train_rows": 100, "test_rows": 20},
        sampling={"rows": 50, "negatives": {"autoregressive": 2, "batch": 1, "meanfield": 0, "truncation": 1}},
        reference={"steps": 10, "prompts_per_step": 4, "prompts_per_microbatch": 2},
        training={"steps": 5, "prompts_per_step": 4, "prompts_per_microbatch": 2},
        generation={"decodings": {"greedy": {}, "nucleus": {"top_p": 0.9}}},
    )
    device = Device("test", memory_gib=1, bf16_tflops=2, fp32_tflops=1, per_node=4)
    tokens = TokenCounts(prompt=90, response=10, origin="test")
    work = {item.stage: item for item in stage_work(run, SHAPE, tokens, device, 4)}
    assert {stage: item.tokens for stage, item in work.items()} == {
        "reference": 10 * 4 * 100,
        "sampling: autoregressive": 50 * 2 * 10,
        "sampling: scoring": 50 * (130 + 100),  # K = 5, one truncation: 90 + 4 * 10; and one pass over the gold
        "cpo": 5 * 4 * 130,
        "mle": 5 * 4 * 100,
        "generation": 20 * 5 * 2 * 10,  # 5 models, 2 decodings
    }
    assert work["cpo"].flops == 6 * 1e6 * 2600
    assert work["sampling: scoring"].flops == 2 * 1e6 * 11_500
    assert work["cpo"].gpus == 2
    assert work["cpo"].hours == pytest.approx(6e6 * 2600 / (2 * 1e12 * 0.35) / 3600)
    assert work["generation"].hours == pytest.approx(2e6 * 2000 / (4 * 1e12 * 0.05) / 3600)
    assert work["cpo"].gpu_hours == pytest.approx(2 * work["cpo"].hours)


@pytest.mark.parametrize(("serving", "gpus"), [({}, 4), ({"in_place": True}, 1)])
def test_generation_is_planned_on_as_many_gpus_as_there_are_engines(serving, gpus):
    device = Device("test", memory_gib=1, bf16_tflops=2, fp32_tflops=1, per_node=4)
    work = stage_work(config(serving=serving), SHAPE, TokenCounts(prompt=90, response=10, origin="test"), device, 4)
    assert {item.stage: item.gpus for item in work}["generation"] == gpus  # of 5 models on 4 GPUs


def test_a_plan_names_its_bottleneck():
    plan = make_plan(config(reference={"steps": 5000}), "a100-80", 1)
    assert plan.bottleneck.stage == "reference"
    assert plan.gpus == 8
    assert plan.gpu_hours == pytest.approx(sum(item.gpu_hours for item in plan.work))
    assert "maxima" in plan.tokens.origin


def test_a_plan_uses_the_data_of_the_run(tmp_path):
    summary = {"train_prompt_tokens": 93.5, "train_response_tokens": 81.25, "vocabulary": 2000}
    make_artifact(tmp_path, "data", {}, lambda _: summary)
    plan = make_plan(config(), "cpu", 1, root=tmp_path)
    assert (plan.tokens.prompt, plan.tokens.response) == (93.5, 81.25)
    assert "means" in plan.tokens.origin
    assert plan.shape.vocabulary == 2000


def test_more_workers_than_gpus_are_refused():
    run = config(training={"workers": 16, "prompts_per_step": 64, "prompts_per_microbatch": 4})
    with pytest.raises(ConfigError, match="workers 16 needs as many GPUs, but 1 x 8 = 8"):
        make_plan(run, "h100", 1)
    assert make_plan(run, "h100", 2).gpus == 16


def test_a_local_model_is_counted_without_its_weights(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    ).save_pretrained(tmp_path)
    shape = describe_model(config(model={"path": str(tmp_path)}), None, None)
    assert shape.parameters == 2 * 64 * 32 + 2 * (4 * 32**2 + 3 * 32 * 48 + 2 * 32) + 32
    assert (shape.hidden_size, shape.layers, shape.vocabulary) == (32, 2, 64)


def test_the_shape_of_a_missing_model_is_guessed_from_its_size(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = config(model={"path": "nobody/has-this"})
    with pytest.raises(ConfigError, match="--parameters N"):
        describe_model(run, None, None)
    shape = describe_model(run, None, 12 * 24**3 * 128**2)
    assert (shape.layers, shape.hidden_size) == (24, 24 * 128)


def test_a_cpu_device_is_one_core_of_this_machine():
    core = find_device("cpu")
    assert core.per_node >= 1
    assert core.memory_gib > 0


def test_a_configuration_is_described_in_lines():
    lines = describe_run(config())
    assert lines[0].startswith("K = 12")
    assert "768 candidates" in lines[1]
