import pytest

from cpo_ray.cluster.accelerators import Device
from cpo_ray.config.loading import parse_config
from cpo_ray.planning.estimate import RunPlan
from cpo_ray.planning.memory import TrainingMemory
from cpo_ray.planning.model_size import ModelSize
from cpo_ray.planning.scaling import NETWORK_UTILIZATION, scale, spread, step_traffic
from cpo_ray.planning.work import START_UP_H, TokenCounts, stage_work

SHAPE = ModelSize(
    parameters=1_000_000_000, hidden_size=100, layers=10, vocabulary=1000, block_bytes=2000, origin="test"
)
TOKENS = TokenCounts(prompt=90, response=10, origin="test")
MACHINE = Device("test", memory_gib=40, bf16_tflops=300, fp32_tflops=20, per_node=8, network_gbit=400)


def config(**training):
    section = {"precision": "bf16", "prompts_per_step": 64, "prompts_per_microbatch": 4, "workers": 2, **training}
    return parse_config({"name": "x", "reference": section, "training": section}, "test")


def plan(run, device=MACHINE):
    memory = {stage: TrainingMemory(0, 0, 0, 0, 0, 0) for stage in range(4)}
    return RunPlan(run, device, 8, SHAPE, TOKENS, memory, stage_work(run, SHAPE, TOKENS, device, 8))


def test_workers_share_the_batch_evenly_and_never_exceed_it():
    for gpus, workers, microbatch in ((8, 8, 4), (16, 16, 4), (24, 16, 4), (64, 64, 1), (512, 64, 1)):
        training = spread(config(), gpus).training
        assert (training.workers, training.prompts_per_microbatch) == (workers, microbatch)
        assert training.prompts_per_step % (workers * microbatch) == 0
    assert spread(config(prompts_per_step=60, prompts_per_microbatch=3, workers=2), 16).training.workers == 15


def test_traffic_by_hand():
    assert step_traffic(config(workers=8).training, plan(config())) == 0  # within a machine
    sixteen = config(workers=16).training
    assert step_traffic(sixteen, plan(config())) == 2 * 15 / 16 * 2 * 1e9
    three = config(workers=16, zero_stage=3, prompts_per_microbatch=2).training
    assert step_traffic(three, plan(config())) == 3 * 2 * 15 / 16 * 2 * 1e9  # two microbatches


def test_hours_by_hand():
    run = config(steps=1000)
    two = scale(plan(run), 2)
    a_step = 2 * 15 / 16 * 2 * 1e9 / (400e9 / 8 * NETWORK_UTILIZATION)
    assert two.network_hours == pytest.approx(3 * 1000 * a_step / 3600)
    arithmetic = sum(item.hours for item in stage_work(spread(run, 16), SHAPE, TOKENS, MACHINE, 16))
    assert two.hours == pytest.approx(arithmetic + two.network_hours + 5 * START_UP_H)  # nothing is sampled by vLLM
    assert two.machine_hours == 2 * two.hours


def test_bottlenecks_are_named():
    fast = Device("test", memory_gib=40, bf16_tflops=300, fp32_tflops=20, per_node=8, network_gbit=1e9)
    assert scale(plan(config(), fast), 2).why == "arithmetic"
    assert scale(plan(config(), fast), 64).why == "64 prompts per step keep 64 of 512 GPUs busy"
    slow = Device("test", memory_gib=40, bf16_tflops=300, fp32_tflops=20, per_node=8, network_gbit=10)
    assert scale(plan(config(), slow), 2).why == "sending the gradients over the network"
    assert scale(plan(config()), 64).hours <= scale(plan(config()), 2).hours
