"""K = 2 against TRL's DPOTrainer on the same pairs; `training` calls it with TRL on the path. Prints a list of ratios.

TRL trains a few steps of 4 pairs. After each of its steps, cpo_ray takes the same step (pack, forward, backward, clip, AdamW)
on the same pairs with weights of its own. Both start from the same weights, with precomputed reference log-probs, and must
have the same loss at every step. TRL's settings are the fastest for it here: no gradient checkpointing, float32, SDPA,
precomputed reference. It gets token ids instead of text, so that both train on the same tokens.
"""

import argparse
import json
import sys
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.groups import EOS, PROMPTS, Batch, make_batches
from benchmarks.steps import SHAPES, make_model
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.losses import cpo_loss
from cpo_ray.objective.packing import pack_groups

BETA, RATE = 0.1, 1e-4


class Tokenized(DPOTrainer):
    """DPOTrainer on rows that are already token ids."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


class Ours:
    """The same optimizer steps by cpo_ray."""

    def __init__(self, shape: str, batches: list[Batch]) -> None:
        self.model = make_model(shape)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.0)
        self.batches = batches
        with torch.no_grad():
            self.reference = [candidate_logps(self.model, pack_groups(*batch)) for batch in batches]

    def step(self, number: int) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        policy_BK = candidate_logps(self.model, pack_groups(*self.batches[number]))
        loss = cpo_loss(policy_BK, self.reference[number], BETA).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


class Alternate(TrainerCallback):
    """After each step of TRL, take ours. TRL's time includes its data loading."""

    def __init__(self, ours: Ours) -> None:
        self.ours = ours
        self.trl_seconds: list[float] = []
        self.our_seconds: list[float] = []
        self.trl_losses: list[float] = []
        self.our_losses: list[float] = []

    def on_train_begin(self, *_, **__):
        self.since = time.process_time()

    def on_step_end(self, _args, state, *_, **__):
        now = time.process_time()
        self.trl_seconds.append(now - self.since)
        self.our_losses.append(self.ours.step(state.global_step - 1))
        self.since = time.process_time()
        self.our_seconds.append(self.since - now)

    def on_log(self, *_, logs=None, **__):
        if "loss" in logs:
            self.trl_losses.append(float(logs["loss"]))


def pairs(number: int) -> list[Batch]:
    """Batches with K = 2: the gold and the response of another prompt, so that the two share only the prompt."""
    batches, _ = make_batches(number)
    return [(prompts, [group[:2] for group in groups]) for prompts, groups in batches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="256x22")
    parser.add_argument("--steps", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batches = pairs(options.steps)
    rows = [
        {"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for b in batches for p, (c, r) in zip(*b, strict=True)
    ]
    callback = Alternate(Ours(options.shape, batches))
    model = make_model(options.shape)
    model.set_attn_implementation("sdpa")
    vocabulary = Tokenizer(models.WordLevel({"<|endoftext|>": EOS}, unk_token="<|endoftext|>"))
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=PROMPTS, learning_rate=RATE,
            lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch", beta=BETA,
            precompute_ref_log_probs=True, gradient_checkpointing=False, bf16=False, use_cpu=True, max_length=None,
            train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to="none",
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=vocabulary, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
        )
        Tokenized(
            model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[callback]
        ).train()
    np.testing.assert_allclose(callback.our_losses, callback.trl_losses, rtol=1e-3, atol=2e-4)
    measured = zip(callback.trl_seconds[1:], callback.our_seconds[1:], strict=True)  # the first step is a warm-up
    ratios = [trl / ours for trl, ours in measured]
    sys.stdout.write(f"losses {callback.our_losses}\n{json.dumps(ratios)}\n")


if __name__ == "__main__":
    main()
