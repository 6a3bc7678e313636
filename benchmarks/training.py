"""A training step against its baselines. `make bench-training`; all ratios from one run.

One step is forward + backward of the ranked CPO loss on 4 prompts, K = 12 MixN, vocabulary 50,257, a GPT-2 shape of 30 M
parameters, float32, one thread; `steps` has the variants. Time is the processor time of the thread, so that other work on
the machine counts as little as possible. Variants alternate on every batch, and a ratio is that of the sums over randomly
drawn batches: the gain over an epoch. The median and the spread of the paired ratios are reported beside it.
Memory is the peak above the loaded model, in a process of its own per variant. The DPO and Ray parts are separate scripts.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from benchmarks.groups import Batch, make_batches, token_pairs
from benchmarks.results import RESULTS, ROOT, machine, not_measured, ratio, ratio_of_sums, write_results
from benchmarks.steps import GPT2_XL, SHAPES, STEPS, flops_saved, make_model, mle_like, padded_gib

FEW = 4  # batches; the comparison that varies most from batch to batch uses all
POOL = 60  # batches from which those are chosen whose padded step fits into memory
TRL = Path(os.environ.get("CPO_RAY_TRL", ROOT / ".venv" / "trl"))  # where `make trl` puts it

Work = Callable[[], float]


def seconds(model: GPT2LMHeadModel, name: str, batch: Batch) -> tuple[float, float]:
    """Processor seconds of one step, and its loss."""
    model.zero_grad(set_to_none=True)
    started = time.process_time()
    loss = STEPS[name](model, batch)
    loss.backward()
    return time.process_time() - started, loss.item()


def paired(
    model: GPT2LMHeadModel, pairs: Iterable[tuple[tuple[str, Batch], tuple[str, Batch]]], rounds: int
) -> list[tuple[float, float]]:
    """The seconds of each pair of steps (a, b), run alternately. Raises if variants of the same loss differ in it."""
    times = []
    for a, b in pairs:
        for _ in range(rounds):
            (took_a, loss_a), (took_b, loss_b) = seconds(model, *a), seconds(model, *b)
            if "mle" not in (a[0], b[0]):
                np.testing.assert_allclose(loss_b, loss_a, rtol=1e-3)
            times.append((took_a, took_b))
            sys.stderr.write(f"{a[0]} {took_a:.2f} s, {b[0]} {took_b:.2f} s\n")
    return times


def step_ratios(model: GPT2LMHeadModel, batches: list[Batch], fitting: list[Batch], rounds: int) -> dict[str, Any]:
    texts, _ = token_pairs(400, random.Random(5))
    seconds(model, "tree", batches[0])  # warm-up

    def compare_with(name: str, on: list[Batch], target: str, baseline: str) -> dict[str, Any]:
        times = paired(model, [(("tree", b), (name, b)) for b in on], rounds)
        return ratio_of_sums(times, target, baseline, "times faster")

    def compare_mle(target: str, baseline: str, *, predicted: bool) -> dict[str, Any]:
        pairs = [(("mle", mle_like(b, texts, predicted=predicted)), ("tree", b)) for b in few]
        return ratio_of_sums(paired(model, pairs, rounds), target, baseline, "times as long")

    few = batches[:FEW]
    rows = paired(model, [(("rows", b), ("padded", b)) for b in fitting[:FEW]], rounds)
    return {
        "step_vs_padded": compare_with("padded", fitting[:FEW], ">= 5", "padded concatenation, full logits"),
        "rows_vs_padded": ratio_of_sums(
            rows, ">= 1", "padded concatenation, full logits", "times faster in separate rows"
        ),
        "step_vs_separate": compare_with(
            "separate", batches, ">= 1.9", "packed, no prefix shared; the head on continuations alone"
        ),
        "step_vs_unshared": compare_with(
            "unshared", few, ">= 1.9", "packed, no prefix shared; the head on every token"
        ),
        "cpo_vs_mle": compare_mle("<= 1.15", "MLE, as many tokens computed and predicted", predicted=True),
        "cpo_vs_mle_on_golds": compare_mle(
            "<= 1.15", "MLE, as many tokens computed, prompts not predicted", predicted=False
        ),
    }


def counted_ratios(pool: list[Batch], shape: str) -> dict[str, Any]:
    """FLOPs saved by sharing prefixes, counted on many more batches than can be timed, for this shape and GPT2-XL's."""
    what, baseline = "times fewer FLOPs, counted", "packed, no prefix shared; the head on continuations alone"
    shapes = {f"flops_vs_separate_{shape}": SHAPES[shape], "flops_vs_separate_gpt2_xl": GPT2_XL}
    return {
        name: ratio([flops_saved(batch, *size) for batch in pool], ">= 1.9", baseline, what)
        for name, size in shapes.items()
    }


def memory_ratio(shape: str, fitting: int, gib: float) -> dict[str, Any]:
    """Peak memory of `tree` divided by that of `padded` on the same batch, both above the loaded model."""
    shares = [peak_of("tree", shape, n, gib) / peak_of("padded", shape, n, gib) for n in range(fitting)]
    return ratio(shares, "<= 0.167", "padded concatenation, full logits", "of its peak memory above the model")


def peak_of(name: str, shape: str, number: int, gib: float) -> float:
    """Peak memory of a variant above the loaded model, GiB, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", "--shape", shape, "--padded-gib", str(gib)]
    command += ["--peak-of", name, str(number)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()[-1])


def resident(field: str) -> int:
    """VmRSS or VmHWM (its peak) of this process, KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def print_peak(model: GPT2LMHeadModel, name: str, batch: Batch) -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak, which includes loading the data
    before = resident("VmRSS")
    seconds(model, name, batch)
    sys.stdout.write(f"{(resident('VmHWM') - before) / 2**20}\n")


def trl_ratio(shape: str) -> dict[str, Any]:
    target, what = ">= 1.5", "times the prompts/s at equal loss, K = 2"
    baseline = "TRL 1.16's DPOTrainer: precomputed reference, padded (it has no padding-free mode at present)"
    if not (TRL / "trl").is_dir():
        return not_measured(target, baseline, what, f"TRL is not in {TRL}; run `make trl` to install it there")
    path = os.pathsep.join([str(TRL), str(ROOT)])
    command = [sys.executable, "-m", "benchmarks.trl_dpo", "--shape", shape]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}
    )
    return ratio(json.loads(done.stdout.splitlines()[-1]), target, baseline, what)


def overhead_ratios(shape: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.overhead", "--shape", shape]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    by_clock = json.loads(done.stdout.splitlines()[-1])
    return {
        f"ray_train_vs_bare_loop_{clock}": ratio(
            values, ">= 0.95", "a bare torch loop over packed batches", f"of its steps/s, {clock} time"
        )
        for clock, values in by_clock.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="256x22", help="width x layers of the GPT-2")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1, help="repetitions per batch and pair of variants")
    parser.add_argument(
        "--padded-gib",
        type=float,
        default=8.0,
        help="compare with padding only on batches whose logits fit into this memory",
    )
    parser.add_argument(
        "--only", choices=["steps", "memory", "trl", "overhead"], nargs="*", help="parts to run; default: all"
    )
    parser.add_argument("--peak-of", nargs=2, metavar=("VARIANT", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool, source = make_batches(POOL)
    fitting = [batch for batch in pool if padded_gib(batch) <= options.padded_gib][: options.batches]
    if options.peak_of:
        name, number = options.peak_of
        print_peak(make_model(options.shape), name, fitting[int(number)])
        return
    parts = options.only or ["steps", "memory", "trl", "overhead"]
    ratios: dict[str, Any] = {}
    if "steps" in parts:
        ratios |= counted_ratios(pool, options.shape)
        ratios |= step_ratios(make_model(options.shape), pool[: options.batches], fitting, options.rounds)
    if "memory" in parts:
        ratios["memory_vs_padded"] = memory_ratio(options.shape, min(2, len(fitting)), options.padded_gib)
    if "trl" in parts:
        ratios["dpo_vs_trl"] = trl_ratio(options.shape)
    if "overhead" in parts:
        ratios |= overhead_ratios(options.shape)
    where = machine("1 thread", source, f"GPT-2 {options.shape}", f"{options.batches} batches of 4 prompts, K = 12")
    name, command = "training", "make bench-training"
    if options.only:
        name, command = f"training-{'-'.join(parts)}", f"python -m benchmarks.training --only {' '.join(parts)}"
    write_results(RESULTS / f"{name}.json", command, where, ratios)


if __name__ == "__main__":
    main()
