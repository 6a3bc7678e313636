from dataclasses import replace

import pytest

from cpo_ray.config import TrainingConfig
from cpo_ray.planning.adapter_size import AdapterSize
from cpo_ray.planning.memory import LM_HEAD_BYTES, activation_bytes, training_memory
from cpo_ray.planning.model_size import ModelSize

SHAPE = ModelSize(parameters=1_000_000, hidden_size=100, layers=10, vocabulary=1000, block_bytes=2000, origin="test")
HEAD = LM_HEAD_BYTES + 4 * 1000 * 100


def training(precision, **keys):
    return TrainingConfig(workers=4, prompts_per_microbatch=16, precision=precision, **keys)


def test_memory_in_fp32_by_hand():
    for stage, (weights, gradients, optimizer) in enumerate([(4, 4, 8), (4, 4, 3), (4, 1, 3), (1, 1, 3)]):
        memory = training_memory(SHAPE, training("fp32"), stage, tokens=50)
        assert (memory.weights, memory.gradients, memory.optimizer) == (weights * 1e6, gradients * 1e6, optimizer * 1e6)
        assert memory.activations == 2000 * 10 * 50 + HEAD


def test_memory_in_bf16_keeps_float32_weights_with_adam():
    memory = training_memory(SHAPE, training("bf16"), 2, tokens=1)
    assert (memory.weights, memory.gradients, memory.optimizer) == (2e6, 0.5e6, 3e6)
    assert training_memory(SHAPE, training("bf16"), 0, tokens=1).optimizer == 12e6


def test_deepspeeds_buckets():
    bf16, fp32 = (
        [training_memory(SHAPE, training(precision), stage, tokens=1).buckets for stage in range(4)]
        for precision in ("bf16", "fp32")
    )
    assert bf16 == [0, 1e9, 1e9, 1e9 + 2e6]  # ZeRO 3 also gathers all weights of so small a model
    assert fp32 == [2 * size for size in bf16]
    assert training_memory(SHAPE, training("fp32"), 1, tokens=1, lazy=True).buckets == 4e6


def test_the_peak_is_in_the_backward_pass_or_in_the_update():
    short = training_memory(SHAPE, training("bf16"), 0, tokens=0)
    assert short.update == 8e6  # float32 gradients, and as much for Adam
    assert short.total == 2e6 + 2e6 + 12e6 + max(HEAD, 8e6)
    large = ModelSize(parameters=10**10, hidden_size=100, layers=10, vocabulary=1000, block_bytes=2000, origin="test")
    memory = training_memory(large, training("bf16"), 1, tokens=0)
    assert memory.update == 8 * 10**10 / 4
    assert memory.total == 2e10 + 2e10 + 3e10 + 2e10


def test_activation_checkpointing_keeps_the_inputs_and_one_block():
    kept = activation_bytes(SHAPE, training("bf16", activation_checkpointing=True), tokens=50)
    assert kept == (10 * 2 * 100 + 2000) * 50 + HEAD


def test_the_defaults_are_deepspeeds():
    zero = pytest.importorskip("deepspeed.runtime.zero.config")
    from cpo_ray.planning.memory import LIVE_PARAMETERS, REDUCE_BUCKET

    defaults = zero.DeepSpeedZeroConfig()
    assert (defaults.reduce_bucket_size, defaults.max_live_parameters) == (REDUCE_BUCKET, LIVE_PARAMETERS)


def test_an_adapter_has_the_gradients_and_the_optimizer():
    """800,000 of a million numbers are in linear layers, and an adapter of 10,000 is trained."""
    adapted = replace(SHAPE, adapter=AdapterSize(trained=10_000, linear=800_000))
    memory = training_memory(adapted, training("bf16"), 0, tokens=50)
    assert (memory.weights, memory.gradients, memory.optimizer) == (2 * 1.01e6, 2e4, 12e4)
    assert memory.update == 8e4
    assert memory.activations == 2000 * 10 * 50 + LM_HEAD_BYTES  # the frozen head has no gradient
    assert training_memory(adapted, training("bf16"), 2, tokens=1).optimizer == 3e4
    small = training_memory(adapted, training("bf16"), 0, tokens=50, quantize="nf4").weights
    assert small == pytest.approx(2 * 210_000 + 800_000 * (1 / 2 + 1 / 64 + 4 / (64 * 256)))
