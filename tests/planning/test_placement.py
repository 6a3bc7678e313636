"""Who gets which GPUs, on declared machines and clusters."""

import pytest

from cpo_ray.cluster.cards import Cards
from cpo_ray.cluster.resources import sampling_resources, scoring_resources, serving_resources, training_resources
from cpo_ray.config.loading import parse_config
from cpo_ray.planning.card_memory import GIB, SCORED_TOKENS, sampling_memory
from cpo_ray.planning.model_size import ModelSize
from cpo_ray.planning.placement import place
from cpo_ray.sampling.scoring import BATCH_TOKENS

SAMPLED = {"negatives": {"autoregressive": 3, "batch": 0, "meanfield": 0, "truncation": 0}}
SMALL = ModelSize(600_000_000, 1024, 28, 150_000, 80_000, "test", keys=1024)
LARGE = ModelSize(8_000_000_000, 4096, 36, 150_000, 250_000, "test", keys=1024)
CARD = Cards(1, memory_gib=24.0, name="RTX 4090")


def config(**sections):
    return parse_config({"name": "x", "sampling": SAMPLED, **sections}, "test")


def bf16(**training):
    return {name: {"precision": "bf16", **training} for name in ("reference", "training")}


def of_pools(placed):
    return tuple(pool.gpus for pool in (placed.sampling.engines, placed.sampling.scorers, placed.sampling.rankers))


def test_without_gpus_everything_is_as_before_there_were_placements():
    run = config()
    placed = place(run, Cards(0)).config
    assert (placed.training.workers, placed.training.prompts_per_microbatch) == (2, 16)
    assert (placed.cluster.worker_gpus, placed.cluster.uses_cuda, placed.serving.in_place) == (0, False, False)
    assert sampling_resources(placed) == serving_resources(placed, 5) == []
    assert training_resources(placed.training, placed.cluster) == [{"CPU": 1.0}] * 2
    changed = {"training", "reference", "sampling", "serving", "cluster"}
    assert placed.model_dump(exclude=changed) == run.model_dump(exclude=changed)
    assert placed.sampling.engine == run.sampling.engine
    assert place(run, Cards(0)).lines == (
        "GPUs: none. On the CPU: 2 training workers; engine, scorer and embedder at once; then 5 engines for 5 models",
    )


def test_on_one_card_of_unknown_memory_sampling_has_two_phases_and_evaluation_one_engine():
    placed = place(config(), Cards(1)).config
    assert placed.sampling.in_phases
    assert of_pools(placed) == (1.0, 1.0, 0.0)
    assert sampling_resources(placed) == scoring_resources(placed) == [{"GPU": 1.0}]
    assert (placed.training.workers, placed.training.prompts_per_microbatch) == (1, 16)
    assert placed.serving.in_place
    assert serving_resources(placed, 5) == [{"GPU": 1.0}]


def test_engine_scorer_and_embedder_share_a_card_that_holds_all_three():
    run = config(**bf16())
    placed = place(run, CARD, SMALL).config
    need, engine = sampling_memory(run, SMALL), placed.sampling.engine
    shares = of_pools(placed)
    assert not placed.sampling.in_phases
    assert sum(shares) <= 1
    for share, needed in zip(shares, (need.smallest_engine, need.scorer, need.embedder), strict=True):
        assert share * 24 * GIB >= needed
    assert engine.gpu_memory_utilization == shares[0]
    assert need.engine + engine.kv_cache_gib * GIB <= shares[0] * 24 * GIB
    assert engine.kv_cache_gib * GIB >= 64 * need.sequence
    assert placed.sampling.scorers.maximum == placed.sampling.rankers.maximum == 1
    assert place(run, Cards(1, 24.0, used_gib=18.0), SMALL).config.sampling.in_phases, "others use most of the card"


def test_a_model_that_leaves_no_room_is_sampled_and_scored_in_phases():
    placed = place(config(**bf16()), Cards(1, 40.0, used_gib=6.0), LARGE).config
    assert placed.sampling.in_phases
    engine, scorer, embedder = of_pools(placed)
    assert (engine, scorer + embedder) == (1.0, 1.0)
    assert 0 < embedder < 0.1
    assert placed.sampling.engine.gpu_memory_utilization == 0.8  # (0.95 * 40 - 6) / 40


def test_two_cards_are_one_for_the_engine_and_one_for_scorer_and_embedder():
    placed = place(config(**bf16()), Cards(2, 80.0), LARGE).config
    assert not placed.sampling.in_phases
    assert of_pools(placed) == (1.0, 0.98, 0.02)
    assert place(config(), Cards(2)).config.sampling.rankers.gpus == 0.0, "on the CPU if nothing is known"
    assert placed.training.workers == placed.reference.workers == 2
    assert placed.serving.in_place, "five models"
    alone = place(config(sampling={}), Cards(1, 80.0), LARGE).config
    assert sum(of_pools(alone)[1:]) == 1, "without an engine they share one card"


@pytest.mark.parametrize("gpus", [8, 16])
@pytest.mark.parametrize("local", [True, False])
def test_with_many_cards_every_process_has_its_own(gpus, local):
    placed = place(config(), Cards(gpus, local=local)).config
    assert of_pools(placed) == (1.0, 1.0, 1.0)
    assert sampling_resources(placed) == [{"GPU": 1.0}] * 3
    assert (placed.training.workers, placed.training.prompts_per_microbatch) == (gpus, 64 // gpus)
    assert placed.training.prompts_per_step % (gpus * placed.training.prompts_per_microbatch) == 0
    assert placed.sampling.scorers.maximum is None, "as many as there is room for"
    assert placed.serving.in_place is False
    assert serving_resources(placed, 5) == [{"GPU": 1.0}] * 5


def test_a_file_that_says_what_each_gets_keeps_its_meaning_on_a_cluster():
    own = {"address": "auto", "gpus_per_worker": 1}
    sixteen = {"workers": 16, "prompts_per_microbatch": 2}
    run = config(cluster=own, training=sixteen, reference=sixteen, serving={"in_place": False})
    placement = place(run, Cards(0, local=False))  # the autoscaler has not started a machine yet
    assert sampling_resources(placement.config) == sampling_resources(run) == [{"GPU": 1.0}] * 3
    assert placement.config.training == run.training
    assert placement.faults == ()
    assert "as many as the stages wait for" in placement.lines[0]


@pytest.mark.parametrize(("gpus", "engine_cards", "expected"), [(2, 2, (2.0, 1.0, 0.0)), (8, 4, (4.0, 1.0, 1.0))])
def test_an_engine_on_several_cards(gpus, engine_cards, expected):
    run = config(sampling={**SAMPLED, "engine": {"tensor_parallel": engine_cards}})
    placed = place(run, Cards(gpus)).config
    assert of_pools(placed) == expected
    assert placed.sampling.in_phases is (gpus == engine_cards)


def test_workers_are_as_many_as_divide_a_step():
    placed = place(config(training={"prompts_per_step": 12, "prompts_per_microbatch": 6}), Cards(8)).config
    assert (placed.training.workers, placed.training.prompts_per_microbatch) == (6, 2)


def test_in_a_stream_trainers_and_samplers_have_cards_of_their_own():
    streamed = {**SAMPLED, "stream": True}
    eight = place(config(sampling=streamed), Cards(8)).config
    assert (of_pools(eight), eight.training.workers) == ((1.0, 1.0, 1.0), 4)
    two = place(config(sampling=streamed, **bf16()), Cards(2, 80.0), SMALL).config
    assert two.training.workers == 1
    assert sum(of_pools(two)) <= 1
    (fault,) = place(config(sampling=streamed), CARD, SMALL).faults
    assert "training workers 1 + engines" in fault
    assert "sampling.stream: false" in fault


@pytest.mark.parametrize(
    ("sections", "arithmetic", "remedy"),
    [
        ({"cluster": {"gpus_per_worker": 1}}, "engines 1 + scorers 1 + embedders 1, at once: 3", "Leave out cluster.gpus_per_"),
        ({"training": {"workers": 4}}, "training.workers 4 x 1 GPU each = 4 GPUs", "Leave out training.workers"),
        ({"serving": {"in_place": False}}, "5 engines x serving.engine.tensor_parallel 1 = 5 GPUs", "serving.in_place: true"),
        ({"sampling": {**SAMPLED, "engine": {"tensor_parallel": 2}}}, "engines 2", "smaller sampling.engine.tensor_parallel"),
        ({"cluster": {"gpus": 2}}, "cluster.gpus 2: this machine has 1", "cluster.device: cpu"),
    ],
)  # fmt: skip
def test_what_needs_more_gpus_is_refused_on_a_machine_with_its_arithmetic_and_not_on_a_cluster(
    sections, arithmetic, remedy
):
    faults = "\n".join(place(config(**sections), Cards(1)).faults)
    assert arithmetic in faults
    assert remedy in faults
    assert "quota" not in faults
    assert "max_workers" not in faults
    assert place(config(**sections), Cards(1, local=False)).faults == ()


def test_what_needs_more_memory_is_refused_with_its_arithmetic():
    """8e9 parameters in bf16: weights and gradients 14.9 GiB each, Adam and a copy in float32 89.4; a card has 0.95 * 24."""
    faults = "\n".join(place(config(**bf16()), CARD, LARGE).faults)
    assert "stage cpo: weights, gradients and optimizer take 14.9 + 14.9 + 89.4 = 119.2 GiB" in faults
    assert "of which 22.8 can be used" in faults
    small_card = "\n".join(place(config(**bf16()), Cards(1, 16.0), LARGE).faults)
    assert "an engine needs at least 14.9 GiB of weights + 0.75 for its process = 15.7 GiB" in small_card
    assert "a scorer needs at least 14.9 GiB" in small_card


def test_what_may_not_fit_is_said_with_the_key_that_helps():
    fits, long = (place(config(**bf16(prompts_per_microbatch=size)), CARD, SMALL).lines for size in (1, 64))
    assert not any("may not fit" in line for line in fits)
    assert any(line.startswith("cpo") and "training.prompts_per_microbatch needs less" in line for line in long)


def test_cards_are_counted_only_and_nothing_computes_on_them():
    placement = place(config(cluster={"gpus": 1, "device": "cpu"}), Cards(1))
    placed = placement.config
    assert placement.faults == ()
    assert (placed.cluster.worker_gpus, placed.cluster.uses_cuda) == (1.0, False)
    assert sampling_resources(placed) == [{"GPU": 1.0}]
    assert "only counted" in placement.lines[0]


def test_a_missing_gpu_that_the_file_asks_for_is_an_error():
    (fault,) = place(config(cluster={"gpus_per_worker": 1}), Cards(0)).faults
    assert fault == "cluster.gpus_per_worker 1: this machine has no GPU that PyTorch can use"
    assert place(config(cluster={"gpus_per_worker": 0}), Cards(4)).config.cluster.worker_gpus == 0


def test_memory_of_sampling_by_hand():
    run = config(**bf16(), data={"max_prompt_tokens": 100, "max_response_tokens": 28})
    need = sampling_memory(run, ModelSize(10**9, 1000, 10, 50_000, 1000, "test", keys=250))
    assert SCORED_TOKENS == BATCH_TOKENS
    assert need.sequence == 128 * 2 * 10 * 250 * 2  # tokens, keys and values, blocks, width, bytes
    assert need.engine == 1.75 * GIB + 2e9 + 8192 * 1000 + 2 * 4 * 256 * 50_000
    assert need.scorer == 0.75 * GIB + 2e9 + 8192 * 1000 + 2 * 4 * 2**23
    assert need.largest_engine - need.engine == 256 * need.sequence
