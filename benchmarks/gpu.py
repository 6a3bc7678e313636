"""MFU, tokens/s and peak memory on one CUDA GPU: packed token trees (FlexAttention) against padded rows with full logits.

    python -m benchmarks.gpu                        GPT2-XL and OpenLlama-3B shapes, random weights, bf16
    python -m benchmarks.gpu --tiny --device cpu    small versions of both, as a test of the script

Only torch and transformers, no Ray. A step is forward + backward of the ranked CPO loss, K = 12 MixN, lengths like Dolly's.
MFU is the model's FLOPs for the tokens and pairs of the packed step (the backward pass counts twice) per second, divided by
the dense peak of the card; recomputation by activation checkpointing is not counted.
"""

import argparse
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.groups import EOS, VOCABULARY, Batch, grouped, synthetic_pairs
from benchmarks.results import RESULTS, machine, not_measured, ratio, write_results
from benchmarks.steps import padded_logps, ranked_loss
from cpo_ray.cluster.accelerators import peak_flops
from cpo_ray.objective.attention import use_tree_attention
from cpo_ray.objective.cost import measure_group, model_shape
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.packing import pack_groups

MODELS: dict[str, Any] = {
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    "openllama-3b": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=3200, intermediate_size=8640, num_hidden_layers=26, num_attention_heads=32,
        max_position_embeddings=2048,
    ),  # OpenLlama's own vocabulary is 32,000; with GPT-2's, both models get the same groups
}  # fmt: skip
TINY: dict[str, Any] = {
    "gpt2-xl": GPT2Config(n_embd=64, n_layer=2, n_head=1, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    "openllama-3b": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=1,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Measurements of one variant of one model."""

    prompts_per_second: float
    tokens_per_second: float  # tokens computed, padding included
    mfu: float | None  # None if the peak is not known
    peak_gib: float | None  # None on CPU
    seconds: list[float]  # of each batch


def make_model(config: Any, device: str, *, checkpointing: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    kind = GPT2LMHeadModel if isinstance(config, GPT2Config) else LlamaForCausalLM
    with torch.device(device):
        model = kind(config).to(dtype)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def packed_step(model: PreTrainedModel, batch: Batch, row_tokens: int | None) -> tuple[Tensor, int]:
    packed = pack_groups(*batch, row_tokens=row_tokens).to(model.device)
    return ranked_loss(candidate_logps(model, packed)), packed.tokens


def padded_step(model: PreTrainedModel, batch: Batch, _: int | None) -> tuple[Tensor, int]:
    logps_BK, tokens = padded_logps(model, batch)
    return ranked_loss(logps_BK), tokens


def measure(
    step: Any, model: PreTrainedModel, batches: list[Batch], row_tokens: int | None, peak: float | None
) -> Measured:
    """Run every batch once to warm up and compile, then once more, timed."""
    cuda = model.device.type == "cuda"
    shape = model_shape(model)
    useful = [3 * sum(shape.forward_flops(measure_group(p, g)) for p, g in zip(*b, strict=True)) for b in batches]
    seconds: list[float] = []
    tokens = 0
    for timed in (False, True):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        for batch in batches:
            model.zero_grad(set_to_none=True)
            started = time.perf_counter()
            loss, computed = step(model, batch, row_tokens)
            loss.backward()
            loss.item()  # waits for the device
            if cuda:
                torch.cuda.synchronize()
            if timed:
                seconds.append(time.perf_counter() - started)
                tokens += computed
    total = sum(seconds)
    return Measured(
        prompts_per_second=sum(len(batch[0]) for batch in batches) / total,
        tokens_per_second=tokens / total,
        mfu=sum(useful) / total / peak if peak else None,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        seconds=seconds,
    )


def compare(
    name: str, config: Any, options: argparse.Namespace, peak: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ratios and other measurements of one model."""
    draw = random.Random(17)
    pairs = synthetic_pairs(options.prompts * options.batches, draw)
    if options.tiny:
        pairs = [(prompt[:20], [*gold[:9], EOS]) for prompt, gold in pairs]
    batches = grouped(pairs, options.prompts, draw)
    if options.tiny:
        batches = [(prompts[:1], groups[:1]) for prompts, groups in batches]
    longest = max(measure_group(p, g).tokens for batch in batches for p, g in zip(*batch, strict=True))
    row_tokens = -(-longest // 128) * 128
    model = make_model(config, options.device, checkpointing=options.checkpointing)
    reason = use_tree_attention(model)
    attention = model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    if reason:
        sys.stdout.write(f"{name}: {reason}\n")
    packed = measure(packed_step, model, batches, row_tokens, peak)
    figures: dict[str, Any] = {"attention": attention, "row_tokens": row_tokens, "packed": asdict(packed)}
    ratios: dict[str, Any] = {}
    card = "the card's dense bf16 peak"
    ratios[f"{name}_mfu"] = (
        not_measured(">= 0.5", card, "of it used", "the peak is not known: give --peak-tflops")
        if packed.mfu is None
        else ratio([packed.mfu], ">= 0.5", card, "of it used")
    )
    baseline, what = "padded concatenation, full logits", "times the prompts/s"
    model.set_attn_implementation("sdpa")
    try:
        padded = measure(padded_step, model, batches, None, peak)
    except torch.OutOfMemoryError as error:
        first = str(error).splitlines()[0]
        return ratios | {f"{name}_vs_padded": not_measured(">= 1", baseline, what, first)}, figures
    faster = [slow / fast for slow, fast in zip(padded.seconds, packed.seconds, strict=True)]
    ratios[f"{name}_vs_padded"] = ratio(faster, ">= 1", baseline, what)
    if packed.peak_gib and padded.peak_gib:
        ratios[f"{name}_memory"] = ratio([packed.peak_gib / padded.peak_gib], "<= 1", baseline, "of its peak memory")
    return ratios, {**figures, "padded": asdict(padded), "median_step_seconds": median(packed.seconds)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and short texts")
    parser.add_argument("--models", choices=list(MODELS), nargs="+", default=list(MODELS))
    parser.add_argument("--prompts", type=int, default=4, help="prompts per step, each with 12 candidates")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing")
    parser.add_argument("--peak-tflops", type=float, help="dense bf16 peak of the card, if cpo_ray does not have it")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    options = parser.parse_args(arguments)
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("no CUDA device on this machine; use --tiny --device cpu to test the script")
    known = peak_flops("bf16") if cuda else None
    peak = options.peak_tflops * 1e12 if options.peak_tflops else known
    ratios: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for name in options.models:
        here, figures[name] = compare(name, (TINY if options.tiny else MODELS)[name], options, peak)
        ratios |= here
    where = machine(
        torch.cuda.get_device_name() if cuda else "no GPU", "random weights", "tiny" if options.tiny else "bf16"
    )
    write_results(
        options.out, "python -m benchmarks.gpu " + " ".join(arguments or sys.argv[1:]), where, ratios, figures=figures
    )


if __name__ == "__main__":
    main()
