"""Real Ray Train, real DeepSpeed, two worker processes."""

import math
import os
import signal

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cpo_ray.artifacts import write_table
from cpo_ray.cluster import ray_cluster
from cpo_ray.config import ClusterConfig, ModelConfig, ObjectiveConfig, TrainingConfig
from cpo_ray.errors import TrainingError
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups
from cpo_ray.records import GROUP_SCHEMA
from cpo_ray.training.models import initialize_model, load_model
from cpo_ray.training.task import Task
from cpo_ray.training.trainer import train_model
from tests.objective.conftest import random_groups

pytestmark = pytest.mark.e2e

STEPS = 40


@pytest.fixture(scope="module")
def cluster():
    config = ClusterConfig(local_cpus=4, object_store_gib=0.2)
    with ray_cluster(config) as lazy:
        lazy.ensure()
        yield config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A reference model and groups that it has scored."""
    root = tmp_path_factory.mktemp("world")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(["<|endoftext|>", *sorted(alphabet)])}, merges=[])
    )
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    words = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    words.save_pretrained(root / "tokenizer")
    for name, tied in (("tied", True), ("untied", False)):
        shape = ModelConfig(hidden_size=32, heads=1, layers=2, intermediate_size=64, context=64, tie_embeddings=tied)
        initialize_model(shape, root / "tokenizer", 3, root / name)
        write_groups(root / name, root / f"groups-{name}")
    return root


def write_groups(model, folder, scale=1.0):
    prompts, candidates = random_groups(seed=7, groups=32)
    with torch.no_grad():
        logps = candidate_logps(load_model(model, "fp32"), pack_groups(prompts, candidates)) * scale
    kinds = [
        "gold",
        "truncation",
        "truncation",
        "meanfield",
        "batch",
        "autoregressive",
        "autoregressive",
        "autoregressive",
    ]
    rows = [
        {
            "id": f"row-{i}",
            "prompt": "",
            "prompt_ids": prompt,
            "candidate_kind": kinds,
            "candidate_ids": group,
            "candidate_text": [""] * 8,
            "similarity": [1.0] * 8,
            "rank": [0, 3, 2, 1, 7, 4, 5, 6],
            "ref_logps": logp,
        }
        for i, (prompt, group, logp) in enumerate(zip(prompts, candidates, logps.tolist(), strict=True))
    ]
    import pyarrow as pa

    write_table(folder / "part-00000.parquet", pa.Table.from_pylist(rows, schema=GROUP_SCHEMA))


def train(world, cluster, out, *, head="tied", groups=None, on_step=lambda _: None, **settings):
    training = TrainingConfig(
        **{
            "steps": STEPS,
            "prompts_per_step": 8,
            "prompts_per_microbatch": 2,
            "learning_rate": 1e-3,
            "checkpoint_every": 10,
            "schedule": "constant",  # so that a shorter run is the beginning of a longer one
            **settings,
        }
    )
    model, rows = str(world / head), groups or world / f"groups-{head}"
    task = Task("cpo", training, ObjectiveConfig(), model, rows, None, seed=1, cuda=False, threads=1)
    losses = {}

    def hear(metrics):
        losses[metrics["step"]] = metrics["loss"]
        on_step(metrics)

    out.mkdir()
    train_model(task, cluster, out.with_name(f"{out.name}-checkpoints"), out, hear)
    return [losses[step] for step in range(1, training.steps + 1)]


@pytest.fixture(scope="module")
def undisturbed(world, cluster, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "model"
    return out, train(world, cluster, out)


def test_the_first_loss_and_an_ordinary_model(undisturbed):
    out, losses = undisturbed
    # One candidate of eight equals the gold and is masked: log 7!.
    assert losses[0] == pytest.approx(math.lgamma(8), abs=1e-3)
    assert losses[-1] < losses[0]
    assert load_model(out, "fp32").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(out).eos_token == "<|endoftext|>"


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 3},
        {"zero_stage": 2, "workers": 1},
    ],
)
def test_topology_does_not_change_the_losses(world, cluster, undisturbed, tmp_path, settings):
    losses = train(world, cluster, tmp_path / "model", steps=10, **settings)
    assert losses == pytest.approx(undisturbed[1][:10], abs=1e-4)


def test_an_untied_head_under_zero_3(world, cluster, tmp_path):
    plain = train(world, cluster, tmp_path / "plain", head="untied", zero_stage=0, workers=1, steps=3)
    assert train(world, cluster, tmp_path / "zero", head="untied", zero_stage=3, steps=3) == pytest.approx(
        plain, abs=1e-4
    )


def test_a_killed_worker_changes_nothing(world, cluster, undisturbed, tmp_path):
    heard, killed = [], []

    def kill_one_worker(metrics):
        heard.append(metrics["step"])
        if metrics["step"] >= 12 and not killed:
            workers = [
                p
                for p in psutil.process_iter(["cmdline"])
                if any("RayTrainWorker" in a for a in p.info["cmdline"] or [])
            ]
            mine = [p for p in workers if os.getpid() in [parent.pid for parent in p.parents()]]
            killed.append(mine[0].pid)
            os.kill(mine[0].pid, signal.SIGKILL)

    out, losses = undisturbed
    assert train(world, cluster, tmp_path / "model", on_step=kill_one_worker) == pytest.approx(losses, abs=1e-12)
    assert killed
    assert len(heard) > len(set(heard)) == STEPS  # some steps were taken twice, from the last checkpoint on
    before, after = load_file(out / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_groups_of_another_reference_are_refused(world, cluster, tmp_path):
    write_groups(world / "tied", tmp_path / "groups", scale=1.1)
    with pytest.raises(TrainingError, match=r"first CPO loss is .* but must be 8\.52"):
        train(world, cluster, tmp_path / "model", groups=tmp_path / "groups")


def test_a_broken_score_stops_before_the_step_and_names_the_row(world, cluster, tmp_path):
    write_groups(world / "tied", tmp_path / "groups", scale=float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: the loss is not finite for rows row-\d+, .*no step was taken"):
        train(world, cluster, tmp_path / "model", groups=tmp_path / "groups")


def test_nothing_is_left_running(cluster):
    assert ray.available_resources()["CPU"] == cluster.local_cpus
