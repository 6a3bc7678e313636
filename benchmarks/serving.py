"""Time to load another model's weights into a running engine, compared with an engine's start. `make bench-serving`.

Two GPT-2 models of about 30 M parameters with tied embeddings, float32, random weights. One engine starts with the first
model and switches to the second and back several times; another engine starts with the second model. Each engine has its own
process. A start is timed after the imports, a switch includes dropping the prefix cache; both end with the first token. The
greedy answers after each switch must equal those of a freshly started engine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.results import RESULTS, ROOT, machine, ratio, write_results

VOCABULARY, CONTEXT, NEW_TOKENS, SWITCHES = 50_257, 256, 32, 6
PROMPTS = [[5, 6, 7], [300, 20, 41, 7], [900], list(range(50, 90))] * 2


def write_model(folder, seed):
    import torch
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=384, n_layer=6, n_head=6, n_positions=CONTEXT, initializer_range=0.1,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder


def engine_main(first, second, out):
    """Start an engine and generate answers; with `second`, switch to it and back. Writes times and answers to `out` as JSON."""
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import LLM, SamplingParams

    from cpo_ray.config import ServingConfig
    from cpo_ray.serving.deployments import engine_options

    config = ServingConfig.model_validate({"in_place": True, "engine": {"kv_cache_gib": 0.25, "max_sequences": 16}})

    def answer():
        sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
        outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def one_token():
        engine.generate([{"prompt_token_ids": [1]}], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)

    started = time.perf_counter()
    engine = LLM(first, **engine_options(Path(first), config, CONTEXT, 0))
    one_token()
    seconds = time.perf_counter() - started
    answers, switches = {first: [answer()]}, []
    for index in range(SWITCHES if second else 0):
        folder = (second, first)[index % 2]
        started = time.perf_counter()
        engine.collective_rpc("switch_weights", args=(folder,))
        engine.reset_prefix_cache()
        one_token()
        switches.append(time.perf_counter() - started)
        answers.setdefault(folder, []).append(answer())
    out.write_text(json.dumps({"start": seconds, "switches": switches, "answers": answers}), encoding="utf-8")


def run_engine(first, second=""):
    out = first.with_suffix(".json")
    subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", "--engine", first, "--then", second, "--out", out],
        check=True,
        cwd=ROOT,
    )
    return json.loads(out.read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine")
    parser.add_argument("--then")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.engine:
        engine_main(options.engine, options.then, options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        first, second = (write_model(Path(folder) / name, seed) for seed, name in enumerate(("first", "second")))
        switched, fresh = run_engine(first, second), run_engine(second)
    expected = {first: switched["answers"][str(first)][0], second: fresh["answers"][str(second)][0]}
    same = all(answer == expected[name] for name in expected for answer in switched["answers"][str(name)])
    differ = expected[first] != expected[second]
    start = median([switched["start"], fresh["start"]])
    switch = f"{median(switched['switches']):.2f} s"
    ratios = {
        "switch_vs_start": ratio(
            [seconds / start for seconds in switched["switches"]],
            "<= 0.2",
            f"an engine's start, {start:.1f} s",
            f"of an engine's start: a switch in place, {switch}",
        ),
        "greedy_equal": ratio(
            [float(same and differ)],
            ">= 1",
            "a freshly started engine",
            f"whether all greedy answers after each of {SWITCHES} switches are equal, and not those of the other model",
        ),
    }
    write_results(RESULTS / "serving.json", "make bench-serving", machine(), ratios)


if __name__ == "__main__":
    main()
