"""Overhead of Ray Train, DeepSpeed and our loop per step, against a bare torch loop. Prints a list of ratios per clock.

Both run in one Ray Train worker and alternate, step by step, on the same rows with weights of their own. Ours is the real
loop: `training_steps` over groups read from Parquet, with packing, checks, metrics and the message to the mailbox. The bare
loop runs on batches that are already packed: forward, backward, clip, AdamW.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from benchmarks.groups import EOS, K, make_batches
from benchmarks.steps import SHAPES, make_model
from cpo_ray.artifacts import write_table
from cpo_ray.cluster.session import ray_cluster
from cpo_ray.config import ClusterConfig, ObjectiveConfig, TrainingConfig
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups
from cpo_ray.records import GROUP_SCHEMA
from cpo_ray.training.task import Task

PROMPTS = 4  # per step
KINDS = ["gold", *["batch"] * 3, *["meanfield"] * 5, *["truncation"] * 3]


def time_steps(settings: dict[str, Any]) -> None:
    """In the worker: write the [ours, bare] seconds of each step, for processor and wall clock."""
    from cpo_ray.objective.attention import use_tree_attention
    from cpo_ray.objective.losses import cpo_loss
    from cpo_ray.objective.pretrained import load_model
    from cpo_ray.training.batch_order import BatchOrder
    from cpo_ray.training.deepspeed_engine import start_engine
    from cpo_ray.training.loader import StoredLoader
    from cpo_ray.training.loop import training_steps
    from cpo_ray.training.rows import TrainingRows
    from cpo_ray.training.signals import Signals

    task, mailbox = settings["task"], settings["mailbox"]
    torch.set_num_threads(1)
    rows, engine = TrainingRows.read(task.rows, task), start_engine(task, sys.stderr.write)
    bare = load_model(task.model, "fp32")
    use_tree_attention(bare)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=task.training.learning_rate, weight_decay=0.0)
    batches = [BatchOrder(len(rows.ids), PROMPTS, task.seed).at(step) for step in range(task.training.steps)]
    packed = [pack_groups([rows.prompts[r] for r in b], [rows.candidates[r] for r in b]) for b in batches]

    def bare_step(number: int) -> None:
        batch = batches[number]
        optimizer.zero_grad(set_to_none=True)
        reference, ranks = torch.from_numpy(rows.ref_logps[batch]), torch.from_numpy(rows.ranks[batch])
        cpo_loss(candidate_logps(bare, packed[number]), reference, 5.0, ranks).mean().backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()

    clocks = time.process_time, time.perf_counter
    seconds: list[list[list[float]]] = []
    save_requested = mailbox.save_requested.remote()

    def poll_signals() -> Signals:
        return Signals(save=ray.get(save_requested))

    before = [clock() for clock in clocks]
    for step in training_steps(engine, StoredLoader(rows, task), task, 0, poll_signals):
        save_requested = mailbox.post_metrics.remote({"step": step.number, **step.metrics})
        between = [clock() for clock in clocks]
        bare_step(step.number - 1)
        after = [clock() for clock in clocks]
        seconds.append([[b - a, c - b] for a, b, c in zip(before, between, after, strict=True)])
        before = after
    Path(settings["out"]).write_text(json.dumps(seconds), encoding="utf-8")


def make_task(folder: Path, shape: str, steps: int) -> Task:
    """Write a model and groups scored by it to disk, and return the task of training it on them."""
    model = make_model(shape)
    vocabulary = Tokenizer(models.WordLevel({"<|endoftext|>": EOS}, unk_token="<|endoftext|>"))
    model.save_pretrained(folder / "model")
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, eos_token="<|endoftext|>").save_pretrained(folder / "model")
    table = []
    for prompts, groups in make_batches(steps)[0]:
        for prompt, group in list(zip(prompts, groups, strict=True))[:PROMPTS]:
            with torch.no_grad():
                logps = candidate_logps(model, pack_groups([prompt], [group]))[0]
            table.append(
                {
                    "id": str(len(table)), "prompt": "", "prompt_ids": prompt, "candidate_kind": KINDS,
                    "candidate_ids": group, "candidate_text": [""] * K, "similarity": [1.0] * K,
                    "rank": list(range(K)), "ref_logps": logps.tolist(),
                }
            )  # fmt: skip
    write_table(folder / "groups" / "part-00000.parquet", pa.Table.from_pylist(table, schema=GROUP_SCHEMA))
    training = TrainingConfig(
        steps=steps, prompts_per_step=PROMPTS, prompts_per_microbatch=PROMPTS, workers=1, zero_stage=0,
        weight_decay=0.0, schedule="constant",
    )  # fmt: skip
    return Task(
        stage="cpo", training=training, objective=ObjectiveConfig(), scheduled_sampling=None,
        model=str(folder / "model"), rows=folder / "groups", validation=None, seed=1, cuda=False, threads=1,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="256x22")
    parser.add_argument("--steps", type=int, default=20)  # the median of seven pairs varies by 0.02
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, ray_cluster(ClusterConfig(local_cpus=2, object_store_gib=0.2)) as lazy:
        folder = Path(name)
        task = make_task(folder, options.shape, options.steps)
        lazy.ensure()
        from cpo_ray.training.mailbox import Mailbox

        TorchTrainer(
            time_steps,
            train_loop_config={"task": task, "mailbox": Mailbox.remote(), "out": str(folder / "seconds.json")},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(storage_path=str(folder), worker_runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu"}}),
        ).fit()
        seconds = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))[1:]  # the first is a warm-up
    by_clock = [[step[clock][1] / step[clock][0] for step in seconds] for clock in range(2)]
    sys.stdout.write(json.dumps(dict(zip(("processor", "wall"), by_clock, strict=True))) + "\n")


if __name__ == "__main__":
    main()
