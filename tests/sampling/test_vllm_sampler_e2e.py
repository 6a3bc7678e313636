"""The vLLM actor on Ray Data with real vLLM: weights change at run time, and no process survives the actor."""

import os
import signal
import time

import psutil
import pytest
import ray.data
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from cpo_ray.cluster.raydata import configure
from cpo_ray.cluster.session import ray_cluster
from cpo_ray.config import ClusterConfig
from cpo_ray.sampling.dataset import with_engine
from cpo_ray.sampling.reference_model import Reference
from cpo_ray.sampling.units import empty_unit, read_units, write_units
from tests.engines import engine_processes
from tests.sampling.example_rows import EOS, make_config

pytestmark = pytest.mark.e2e
KINDS = ("greedy", "autoregressive", "hot")
VOCABULARY, CONTEXT, LONGEST, ROWS = 90, 64, 8, 4


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with ray_cluster(ClusterConfig(object_store_gib=0.3)) as cluster:
        cluster.ensure()
        yield cluster


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two GPT-2 models of the same shape, with LM heads tied to the embeddings."""
    folders = [tmp_path_factory.mktemp(name) for name in ("reference", "policy")]
    for seed, folder in zip((3, 10), folders, strict=True):
        torch.manual_seed(seed)
        special = {"bos_token_id": None, "eos_token_id": EOS}
        shape = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 64, "n_layer": 2, "n_head": 2}
        model = GPT2LMHeadModel(
            GPT2Config(**shape, **special, initializer_range=0.3)
        )  # one token is by far the most likely
        model.save_pretrained(folder)
    return folders


def prompts(number):
    return [[1 + (7 * number + 3 * row + place) % (VOCABULARY - 1) for place in range(5)] for row in range(ROWS)]


def unit(number, policy=""):
    groups = [
        {
            "id": f"{number}-{row}",
            "prompt": "",
            "prompt_ids": prompt,
            "candidate_kind": ["gold"],
            "candidate_ids": [[EOS]],
        }
        | {"candidate_text": [], "similarity": [], "rank": [], "ref_logps": []}
        for row, prompt in enumerate(prompts(number))
    ]
    return {**empty_unit(number, 17), "policy": str(policy), "groups": groups}


def greedy(folder, number):
    """Greedy continuations by the model."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    answers = []
    for prompt in prompts(number):
        tokens = list(prompt)
        while len(tokens) - len(prompt) < LONGEST and (len(tokens) == len(prompt) or tokens[-1] != EOS):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        answers.append(tokens[len(prompt) :])
    return answers


def sample(units, reference, gate, on_unit, **engine):
    """The units with a candidate of each kind in KINDS. The last unit waits for the file `gate`, which follows the first call
    of `on_unit`."""
    config = make_config(
        negatives=dict.fromkeys(KINDS, 1) | {"batch": 0, "meanfield": 0, "truncation": 0},
        kinds={"hot": {"temperature": 2.0, "top_k": 0}},
        batch_rows=ROWS,
        redraws=0,
        engine={"kv_cache_gib": 0.25, "max_sequences": 8} | engine,
    )
    last = units[-1]["start"]

    def hold_back(batch):
        while batch["start"][0].as_py() == last and not gate.exists():
            time.sleep(0.1)
        return batch

    dataset = ray.data.from_arrow([write_units([unit]) for unit in units])
    configure(dataset)
    dataset = dataset.map_batches(hold_back, batch_size=1, batch_format="pyarrow", num_cpus=0.1)
    done = []
    for batch in with_engine(dataset, config, Reference(reference, CONTEXT, EOS, VOCABULARY)).iter_batches(
        batch_size=1, batch_format="pyarrow", prefetch_batches=0
    ):
        done += read_units(batch)
        on_unit()
        gate.touch()
    return sorted(done, key=lambda unit: unit["start"])


def sampled(unit, kind="greedy"):
    return [group["candidate_ids"][group["candidate_kind"].index(kind)] for group in unit["groups"]]


def test_each_unit_is_sampled_from_its_policy_by_one_engine_that_keeps_running(models, tmp_path):
    """Both the policy and the reference are loaded again after the other."""
    reference, policy = models
    policies = ["", policy, "", policy, policy, "", "", policy]
    seen = set()
    done = sample(
        [unit(number, policy) for number, policy in enumerate(policies)],
        reference,
        tmp_path / "gate",
        lambda: seen.update(p.pid for p in engine_processes()),
    )
    assert len(done) == len(policies)
    assert len(seen) == 1
    expected = {folder: [greedy(folder, number) for number in range(len(policies))] for folder in models}
    assert expected[reference] != expected[policy]
    for number, policy in enumerate(policies):
        assert sampled(done[number]) == expected[policy or reference][number], (number, policy)
    assert all(tuple(group["candidate_kind"]) == ("gold", *KINDS) for unit in done for group in unit["groups"])
    greedy_answers, others, hot = ([sample for unit in done for sample in sampled(unit, kind)] for kind in KINDS)
    equal = [sum(map(list.__eq__, greedy_answers, samples)) for samples in (others, hot)]
    assert max(equal) < len(greedy_answers) / 2
    assert others != hot


@pytest.mark.parametrize("victim", ["core", pytest.param("actor", marks=pytest.mark.chaos)])
def test_actor_and_engine_exit_together_and_are_replaced(models, tmp_path, victim):
    """SIGKILL of the actor, or of vLLM's child process, leaves no time to clean up."""
    killed = []

    def kill_once():
        if not killed:
            (core,) = engine_processes()
            killed.extend([core, core.parent()])
            os.kill(killed[victim == "actor"].pid, signal.SIGKILL)

    done = sample([unit(number) for number in range(24)], models[0], tmp_path / "gate", kill_once, max_sequences=1)
    assert [unit["start"] for unit in done] == list(range(24))
    assert all(sampled(unit) == greedy(models[0], unit["start"]) for unit in done[::8])
    _, alive = psutil.wait_procs(killed, timeout=60)
    assert alive == []
