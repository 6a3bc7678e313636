"""Test data for training: a tokenizer, two reference models, and groups scored by each."""

from pathlib import Path

import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cpo_ray.artifacts import write_table
from cpo_ray.config import ModelConfig, ObjectiveConfig, TrainingConfig
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups
from cpo_ray.objective.pretrained import load_adapted
from cpo_ray.records import GROUP_SCHEMA, SCORED_GROUP_SCHEMA
from cpo_ray.training.models import initialize_model
from cpo_ray.training.task import Task
from tests.objective.conftest import random_groups

KINDS = ["gold", "truncation", "truncation", "meanfield", "batch", "autoregressive", "autoregressive", "autoregressive"]
RANKS = [0, 3, 2, 1, 7, 4, 5, 6]


def make_world(root: Path) -> Path:
    """root/{tokenizer,tied,untied,groups-tied,groups-untied,examples}."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(["<|endoftext|>", *sorted(alphabet)])}, merges=[])
    )
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.save_pretrained(root / "tokenizer")
    for name, tied in (("tied", True), ("untied", False)):
        shape = ModelConfig(hidden_size=32, heads=1, layers=2, intermediate_size=64, context=64, tie_embeddings=tied)
        initialize_model(shape, root / "tokenizer", 3, root / name)
        write_groups(root / name, root / f"groups-{name}")
    prompts, candidates = random_groups(seed=7, groups=32)
    columns = {"id": [f"row-{i}" for i in range(32)], "prompt_ids": prompts, "response_ids": [c[0] for c in candidates]}
    write_table(root / "examples" / "part-00000.parquet", pa.table(columns))
    return root


def write_groups(model, folder, *, change=lambda rows: rows, precision="fp32"):
    """Write random groups with their log-probs under `model`. change: applied to the rows before they are written."""
    prompts, candidates = random_groups(seed=7, groups=32)
    with torch.no_grad():
        logps = candidate_logps(load_adapted(model, precision), pack_groups(prompts, candidates))
    rows = [
        {
            "id": f"row-{i}",
            "prompt": "",
            "prompt_ids": prompt,
            "candidate_kind": KINDS,
            "candidate_ids": group,
            "candidate_text": [""] * 8,
            "similarity": [1.0] * 8,
            "rank": RANKS,
            "ref_logps": logp,
        }
        for i, (prompt, group, logp) in enumerate(zip(prompts, candidates, logps.tolist(), strict=True))
    ]
    changed = change(rows)
    schema = SCORED_GROUP_SCHEMA if any("score" in row for row in changed) else GROUP_SCHEMA
    write_table(folder / "part-00000.parquet", pa.Table.from_pylist(changed, schema=schema))


def make_task(world, *, head="tied", groups=None, objective=None, validation=None, adapter=None, **settings):
    """A CPO task on the groups of `world`; `objective=False`: MLE on its examples. adapter: train one."""
    mle = objective is False
    training = TrainingConfig(
        **{
            "steps": 20,
            "prompts_per_step": 8,
            "prompts_per_microbatch": 2,
            "learning_rate": 1e-3,
            "checkpoint_every": 5,
            "schedule": "constant",  # so that a shorter run equals the beginning of a longer one
            **settings,
        }
    )
    return Task(
        stage="mle" if mle else "cpo",
        training=training,
        objective=None if mle else objective or ObjectiveConfig(),
        scheduled_sampling=None,
        model=str(world / head),
        rows=groups or (world / "examples" if mle else world / f"groups-{head}"),
        validation=validation,
        seed=1,
        cuda=False,
        threads=1,
        adapter=adapter,
        continue_adapter=True,
    )


def worker_with_kills(kills, folder, *, victim=None, pause=0.0):
    """train_worker with injected kills: `kills` maps a moment, ("step", n) or ("checkpoint", n), to the rank that kills.

    It kills itself, or the process `victim`, by SIGKILL. Each kill happens once, and leaves a marker file in `folder`. The kill
    of a checkpoint happens before its files are sealed. pause: extra seconds per step.
    """

    def train_worker(settings):  # a closure, because workers cannot import the tests
        import os
        import signal
        import time

        import torch.distributed as dist

        from cpo_ray.training import checkpoint, loop, worker

        set_rate, write_seal, finished = loop.set_learning_rate, checkpoint._write_seal, []

        def maybe_kill(*moment):
            marker = folder / "-".join(map(str, moment))
            if kills.get(moment) == dist.get_rank() and not marker.exists():
                marker.touch()
                os.kill(victim or os.getpid(), signal.SIGKILL)
                time.sleep(60 if victim else 0)  # this process dies with the victim's cluster

        def before_the_optimizer_step(engine, rate):
            time.sleep(pause)
            finished.append(engine.global_steps + 1)
            maybe_kill("step", finished[-1])
            set_rate(engine, rate)

        def before_the_seal(path, rank):
            maybe_kill("checkpoint", finished[-1])
            write_seal(path, rank)

        loop.set_learning_rate, checkpoint._write_seal = before_the_optimizer_step, before_the_seal
        worker.train_worker(settings)

    return train_worker
