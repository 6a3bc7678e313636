import pytest

from cpo_ray.artifacts import make_artifact
from cpo_ray.cluster.accelerators import DEVICES, Device
from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ConfigError
from cpo_ray.planning.estimate import make_plan
from cpo_ray.planning.model_size import ModelSize
from cpo_ray.planning.tables import describe_run
from cpo_ray.planning.work import (
    ANSWER_S,
    ENGINE_START_S,
    GROUP_S,
    MICROBATCH_S,
    SHORTEST_START_S,
    START_UP_H,
    WORKER_START_S,
    TokenCounts,
    stage_work,
)


def config(**sections):
    return parse_config({"name": "x", **sections}, "test")


SHAPE = ModelSize(parameters=1_000_000, hidden_size=100, layers=10, vocabulary=1000, block_bytes=2000, origin="test")


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
    assert plan.hours == pytest.approx(sum(item.hours + item.start_hours for item in plan.work))
    assert list(plan.stage_seconds) == ["reference", "sampling", "cpo", "mle", "generation"]
    assert sum(plan.stage_seconds.values()) == pytest.approx(3600 * plan.hours)


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


def test_a_plan_uses_a_sample_until_the_run_has_data(tmp_path):
    trial = {"train_prompt_tokens": 20, "train_response_tokens": 8, "vocabulary": 700}
    plan = make_plan(config(), "h100", 1, root=tmp_path, trial=trial)
    assert (plan.tokens.prompt, plan.tokens.response, plan.shape.vocabulary) == (20, 8, 700)
    assert "sample" in plan.tokens.origin
    made = {"train_prompt_tokens": 21, "train_response_tokens": 9, "vocabulary": 1000}
    make_artifact(tmp_path, "data", {}, lambda _: made)
    assert make_plan(config(), "h100", 1, root=tmp_path, trial=trial).tokens.prompt == 21


def test_cpu_cores_take_time_per_microbatch_group_and_answer_and_to_start():
    run = config(
        data={"train_rows": 100, "test_rows": 20},
        sampling={"negatives": {"autoregressive": 1, "batch": 1, "meanfield": 0, "truncation": 0}},
        reference={"steps": 10, "prompts_per_step": 8, "prompts_per_microbatch": 2},
        training={"steps": 5, "prompts_per_step": 4, "prompts_per_microbatch": 2},
    )
    tokens = TokenCounts(prompt=90, response=10, origin="test")
    core = Device("core", memory_gib=1, bf16_tflops=2, fp32_tflops=1, per_node=2, cores=True)
    work = {item.stage: item for item in stage_work(run, SHAPE, tokens, core, 2)}
    seconds = {stage: item.hours * 3600 for stage, item in work.items()}
    assert seconds["reference"] == pytest.approx(6e6 * 80 * 100 / (2 * 1e12 * 0.4) + 10 * 2 * MICROBATCH_S)
    assert seconds["cpo"] == pytest.approx(6e6 * 20 * 120 / (2 * 1e12 * 0.4) + 5 * MICROBATCH_S)
    assert seconds["sampling: scoring"] == pytest.approx(2e6 * 100 * 220 / (2 * 1e12 * 0.4) + 100 * GROUP_S)
    assert seconds["generation"] == pytest.approx(2e6 * 100 * 10 / (2 * 1e12 * 0.4) + 100 * ANSWER_S)
    starts = {stage: item.start_hours * 3600 for stage, item in work.items()}
    assert starts["cpo"] == pytest.approx(WORKER_START_S)  # two workers on two cores
    assert starts["generation"] == pytest.approx(ENGINE_START_S * 5 / 2)  # five engines
    many = {item.stage: item for item in stage_work(run, SHAPE, tokens, core, 64)}
    assert many["generation"].start_hours * 3600 == pytest.approx(SHORTEST_START_S)


def test_a_stage_on_gpus_has_six_minutes_to_start_if_it_has_work():
    plan = make_plan(config(sampling={"negatives": {"autoregressive": 0, "batch": 2}}), "h100", 1)
    starts = {item.stage: item.start_hours for item in plan.work}
    assert starts["sampling: autoregressive"] == 0
    kinds = {"negatives": {"autoregressive": 1, "greedy": 1, "hot": 2}, "kinds": {"hot": {"temperature": 1.4}}}
    several, four = (make_plan(config(sampling=s), "h100", 1) for s in (kinds, {"negatives": {"autoregressive": 4}}))
    assert several.work[1] == four.work[1], "the cost of a kind is that of its samples"
    assert starts["cpo"] == starts["generation"] == START_UP_H


def test_the_checkable_task_on_two_cores_takes_as_long_as_it_did(monkeypatch):
    """Its stages took 167, 39, 71, 53 and 195 s on two cores that multiply matrices of its width with 90 GFLOP/s each."""
    core = Device("core", memory_gib=12, bf16_tflops=0.18, fp32_tflops=0.09, per_node=2, cores=True)
    monkeypatch.setattr("cpo_ray.planning.estimate.measure_cores", lambda _: core)
    trial = {"train_prompt_tokens": 14.9, "train_response_tokens": 8.9, "vocabulary": 946}
    checkable = config(
        data={"train_rows": 8000, "test_rows": 500, "max_prompt_tokens": 128, "max_response_tokens": 48},
        reference={"steps": 1100, "prompts_per_step": 32, "prompts_per_microbatch": 16},
        sampling={"rows": 2000, "negatives": {"autoregressive": 3, "batch": 1, "meanfield": 2, "truncation": 1}},
        training={"steps": 100, "prompts_per_step": 64, "prompts_per_microbatch": 32},
        merging={"alphas": [0.3, 0.7]},
        generation={"rows": 500},
    )
    plan = make_plan(checkable, "cpu", 1, trial=trial)
    assert plan.shape.parameters == 1_422_560
    assert plan.hours * 3600 == pytest.approx(167 + 39 + 71 + 53 + 195, rel=0.3)


@pytest.mark.parametrize("gpu", list(DEVICES))
def test_a_plan_for_every_gpu(gpu):
    plan = make_plan(config(), gpu, 2)
    assert plan.gpus == 2 * DEVICES[gpu].per_node


def test_a_configuration_is_described_in_lines():
    lines = describe_run(config())
    assert lines[0].startswith("K = 12")
    assert "768 candidates" in lines[1]
    counts = {"greedy": 1, "hot": 2, "autoregressive": 1}
    _, sampled, *_ = describe_run(
        config(sampling={"negatives": counts, "kinds": {"hot": {"temperature": 1.4, "top_k": 0}}})
    )
    assert sampled == (
        "sampled by vLLM: greedy (temperature 0), autoregressive (temperature 1, top-k 50), hot (temperature 1.4)"
    )
