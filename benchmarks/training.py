"""Step time and memory of token-tree packing against what others do. `make bench-training`; ratios from one run.

One step is forward + backward of the ranked CPO loss on 4 prompts, K = 12 MixN, vocabulary 50,257, a GPT-2 shape of about
30 M parameters, float32, one thread. Baselines, all computing the same loss:
    padded      each prompt + candidate a row of its own, padded to the longest, full logits (what pairwise trainers do, K-wise)
    separate    packed rows and the same chunked head, but each prompt + candidate a tree of its own: no prefix is shared
    mle         next-token loss on as many tokens as the CPO step computes
Variants take turns, batch by batch, so that a machine that changes its speed changes it for all. Memory is the peak of a
process of its own per variant.
"""

import argparse
import json
import platform
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cpo_ray.data.dolly import read_dolly
from cpo_ray.data.rows import Row
from cpo_ray.data.template import apply_template
from cpo_ray.data.tokenization import encode, load_tokenizer
from cpo_ray.objective.logprobs import candidate_logps
from cpo_ray.objective.losses import cpo_loss, mle_loss
from cpo_ray.objective.packing import pack_groups

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
VOCABULARY, EOS, K, PROMPTS = 50_257, 50_256, 12, 4
MIX = {"batch": 3, "meanfield": 5, "truncation": 3}
LONGEST = 320  # prompt + response; what a padded step of 48 rows can hold in 24 GiB


def lengths(count, draw):
    """(prompt, response) token lists: Dolly's own where it is at hand, else random tokens of lengths like them."""
    dolly = SHARED / "dolly" / "databricks-dolly-15k.jsonl"
    if dolly.exists():
        tokenizer = load_tokenizer(str(SHARED / "tokenizers"))
        rows = [row for row in read_dolly(dolly) if isinstance(row, Row)]
        rows = draw.sample(rows, 4 * count)
        prompts = [apply_template("{context}\n{instruction}\n", row.instruction, row.context) for row in rows]
        pairs = zip(
            encode(tokenizer, prompts, special=True), encode(tokenizer, [row.response for row in rows], special=False),
            strict=True,
        )  # fmt: skip
        fitting = [(p, r) for p, r in pairs if len(p) + len(r) < LONGEST and len(r) > 1]
        return fitting[:count], "Dolly"
    tokens = lambda n: [draw.randrange(EOS) for _ in range(n)]  # noqa: E731
    return [(tokens(draw.randint(8, 120)), tokens(draw.randint(8, 120))) for _ in range(count)], "synthetic lengths"


def make_batches(number, seed=17):
    """Groups as sampling makes them: the prompts, and for each its K candidates."""
    draw = random.Random(seed)
    pairs, source = lengths(number * PROMPTS, draw)
    batches = []
    for start in range(0, len(pairs), PROMPTS):
        batch = pairs[start : start + PROMPTS]
        prompts, groups = [], []
        for prompt, response in batch:
            others = [[*r, EOS] for _, r in draw.sample([p for p in pairs if p[1] != response], MIX["batch"])]
            edits = [meanfield(response, draw) for _ in range(MIX["meanfield"])]
            cuts = [[*response[: draw.randint(1, len(response) - 1)], EOS] for _ in range(MIX["truncation"])]
            prompts.append(prompt)
            groups.append([[*response, EOS], *others, *edits, *cuts])
        batches.append((prompts, groups))
    return batches, source


def meanfield(response, draw):
    edited = list(response)
    for position in draw.sample(range(len(response)), max(1, round(0.15 * len(response)))):
        edited[position] = draw.randrange(EOS)
    return [*edited, EOS]


def make_model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=384, n_layer=6, n_head=6, n_positions=1024,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=EOS, eos_token_id=EOS,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.set_attn_implementation("sdpa")
    return model


def loss_of(logps_BK):
    """The ranked loss against a reference that is the policy's own values: the same number in every variant."""
    ranks = torch.arange(logps_BK.shape[1]).repeat(logps_BK.shape[0], 1)
    return cpo_loss(logps_BK, logps_BK.detach() * 0.99, 5.0, ranks).mean()


def tree_step(model, batch):
    return loss_of(candidate_logps(model, pack_groups(*batch)))


def separate_step(model, batch):
    prompts = [prompt for prompt, group in zip(*batch, strict=True) for _ in group]
    candidates = [[candidate] for group in batch[1] for candidate in group]
    return loss_of(candidate_logps(model, pack_groups(prompts, candidates)).view(len(batch[0]), -1))


def padded_step(model, batch):
    rows = [(p, c) for p, group in zip(*batch, strict=True) for c in group]
    width = max(len(p) + len(c) for p, c in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    seen, answer = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (p, c) in enumerate(rows):
        ids[i, : len(p) + len(c)] = torch.tensor(p + c)
        seen[i, : len(p) + len(c)] = 1
        answer[i, len(p) : len(p) + len(c)] = True
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return loss_of((logps * answer[:, 1:]).sum(1).view(len(batch[0]), -1))


def mle_step(model, batch):
    """Sequences of gold alone, repeated until they hold as many tokens as the CPO step's trees."""
    target = pack_groups(*batch).tokens
    golds = [(p, [group[0]]) for p, group in zip(*batch, strict=True)]
    prompts, candidates, tokens = [], [], 0
    while tokens < target:
        p, c = golds[len(prompts) % len(golds)]
        prompts.append(p)
        candidates.append(c)
        tokens += len(p) + len(c[0])
    logps = candidate_logps(model, pack_groups(prompts, candidates))
    return mle_loss(logps[:, 0], sum(len(c[0]) for c in candidates))


STEPS = {"tree": tree_step, "separate": separate_step, "padded": padded_step, "mle": mle_step}


def run_step(model, batch, name):
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    loss = STEPS[name](model, batch)
    loss.backward()
    return time.perf_counter() - started, loss.item()


def measure_memory(name, batches):
    """Peak resident GiB above the loaded model, in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", name, "--batches", str(batches)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_of(name, batches):
    model, (data, _) = make_model(), make_batches(batches)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for batch in data:
        run_step(model, batch, name)
    sys.stdout.write(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 2**20}\n")


def ratio(value, target, holds, baseline, what):
    return {"value": round(value, 2), "target": target, "holds": holds, "baseline": baseline, "what": what}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--peak-of")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak_of:
        peak_of(options.peak_of, options.batches)
        return
    model, (data, source) = make_model(), make_batches(options.batches)
    seconds, losses = {name: [] for name in STEPS}, {name: [] for name in STEPS}
    run_step(model, data[0], "tree")  # warm-up
    for batch in data:
        for name in STEPS:
            took, loss = run_step(model, batch, name)
            seconds[name].append(took)
            losses[name].append(loss)
    for name in ("separate", "padded"):
        np.testing.assert_allclose(losses[name], losses["tree"], rtol=1e-3)
    faster = {name: median(np.array(seconds[name]) / np.array(seconds["tree"])) for name in STEPS}
    memory = {name: measure_memory(name, options.batches) for name in ("tree", "padded")}
    share = memory["padded"] / memory["tree"]
    ratios = {
        "step_vs_padded": ratio(faster["padded"], ">= 5", faster["padded"] >= 5, "padded, full logits", "times faster"),
        "memory_vs_padded": ratio(share, ">= 6", share >= 6, "padded, full logits", "times less above the model"),
        "step_vs_separate": ratio(
            faster["separate"], ">= 1.9", faster["separate"] >= 1.9, "no prefix shared", "times faster"
        ),
        "cpo_vs_mle": ratio(
            1 / faster["mle"], "<= 1.15", 1 / faster["mle"] <= 1.15, "MLE on as many tokens", "times as long"
        ),
    }
    result = {
        "date": time.strftime("%F"),
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}, {source}, {options.batches} batches",
        "command": "make bench-training",
        "ratios": ratios,
    }
    out = ROOT / "benchmarks" / "results" / "training.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, entry in ratios.items():
        verdict = "holds" if entry["holds"] else "DOES NOT HOLD"
        sys.stdout.write(
            f"{name}: {entry['value']} ({entry['target']}: {verdict}) {entry['what']}, {entry['baseline']}\n"
        )


if __name__ == "__main__":
    main()
