"""Autoregressive negatives through Ray Data, compared with the bare engine and with Hugging Face's `generate`.

The case is a typical one for the engine: Dolly's prompts and GPT-2's vocabulary if ../shared/data has them, a GPT-2 of 30 M
parameters, 11 samples of up to 128 tokens per prompt. A model with random weights would never end a sample, and all samples
would be equally long. So EOS gets a constant probability after each token, chosen such that the mean length of a sample equals
that of the data's responses, cut at 128 tokens: lengths follow a geometric distribution, which is close to Dolly's. All three
sides use the same model, prompts, dtype and number of threads, and count only the tokens up to EOS, EOS included. Engine and
cluster starts are not measured.
"""

import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

import psutil
import pyarrow as pa

from benchmarks.results import ROOT, ratio
from cpo_ray.config import RunConfig
from cpo_ray.sampling.vllm_sampler import VllmSampler

SHARED = ROOT.parent / "shared" / "data"
DOLLY, TOKENIZER = SHARED / "dolly" / "databricks-dolly-15k.jsonl", SHARED / "tokenizers"
SAMPLES, LONGEST = 11, 128
TOP_K, STEADY = 50, 30.0  # STEADY: the larger, the less the logit of EOS depends on the context
SIZES = (2, 4, 8, 16)  # prompts of a batch in Hugging Face's `generate`
CLOCK = ("began", "ended", "processor_began", "processor_ended")  # kinds of work that `TimedSampler` adds

Numbers = dict[str, float]


def configure(rows: int) -> RunConfig:
    """`rows` prompts with 11 autoregressive negatives each."""
    counts = {"autoregressive": SAMPLES, "batch": 0, "meanfield": 0, "truncation": 0}
    data: dict[str, Any] = {"train_rows": rows, "validation_rows": 8, "test_rows": 8}
    if DOLLY.exists():
        template = "Context: {context}\nInstruction: {instruction}\nResponse:\n"
        data = {"source": "dolly", "path": str(DOLLY), "tokenizer": {"path": str(TOKENIZER)}, "template": template}
        data |= {"train_rows": 7505, "validation_rows": 0, "test_rows": 7506, "on_bad_row": "quarantine"}
    return RunConfig.model_validate(
        {
            "name": "bench",
            "data": {"max_prompt_tokens": 256, "max_response_tokens": LONGEST} | data,
            "model": {
                "architecture": "gpt2", "hidden_size": 384, "layers": 6, "heads": 6, "intermediate_size": 1536, "context": 384,
            },
            "sampling": {
                "rows": rows, "batch_rows": 32, "negatives": counts, "redraws": 0,
                "engine": {"kv_cache_gib": 1.5, "max_sequences": 256},
            },
            "cluster": {"object_store_gib": 1.0},
        }
    )  # fmt: skip


def prepare(config: RunConfig, folder: Path) -> tuple[Any, Any]:
    """The selected rows and the reference. Data and model are made once."""
    from cpo_ray.artifacts import read_table
    from cpo_ray.data.examples import prepare_examples
    from cpo_ray.sampling.reference_model import read_reference
    from cpo_ray.sampling.selection import select_rows
    from cpo_ray.training.models import initialize_model

    data, path = folder / "data", folder / "reference"
    if not data.exists():
        data.mkdir(parents=True)
        prepare_examples(config, data)
        initialize_model(config.model, data / "tokenizer", config.seed, path)
        rows = read_table(data / "train").select(["prompt_ids", "response_ids"]).to_pylist()
        wanted = mean(min(LONGEST, len(row["response_ids"])) for row in rows)
        some = [row["prompt_ids"][-config.data.max_prompt_tokens :] for row in rows[:: max(1, len(rows) // 16)]]
        end_as(path, some, wanted, config.cluster.threads_per_worker)
    reference = read_reference(path)
    return select_rows(read_table(data / "train"), config, reference.context, reference.eos), reference


def end_as(path: Path, prompts: Sequence[list[int]], wanted: float, threads: int) -> None:
    """Change the model with random weights so that a sample ends after each token with the same probability.

    wanted: mean length, cut at `LONGEST`. The head's row of EOS becomes orthogonal to all other rows, and the last bias points
    along it: the logit of EOS is nearly constant and independent of the other logits. The embeddings are scaled so that EOS is
    among the 50 most likely tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(17)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    eos, words, bias = model.config.eos_token_id, model.transformer.wte.weight.data, model.transformer.ln_f.bias.data
    words *= 4
    along = torch.nn.functional.normalize(words[eos], dim=0)
    words -= torch.outer(words @ along, along)  # the logit of EOS is now 0: never among the top 50
    logits = []
    with torch.inference_mode():
        for prompt in prompts:  # logits of the other tokens, after the model's own samples
            ids = torch.tensor([prompt])
            written = model.generate(ids, do_sample=True, top_k=TOP_K, max_new_tokens=24, pad_token_id=eos)
            logits.append(model(written).logits[0, len(prompt) :])
    others = torch.cat(logits).topk(TOP_K - 1).values.logsumexp(-1).mean().item()
    bias += STEADY * along
    words[eos] = (others - math.log(hazard_inverse(wanted) - 1)) / STEADY * along
    model.save_pretrained(path)


def hazard_inverse(wanted: float) -> float:
    """1/p of the geometric distribution whose mean is `wanted` once it is cut at `LONGEST`, by bisection."""
    low, high = 1.001, 1e6
    while high - low > 1e-3:
        middle = (low + high) / 2
        mean_when_cut = middle * (1 - (1 - 1 / middle) ** LONGEST)
        low, high = (middle, high) if mean_when_cut < wanted else (low, middle)
    return low


def bare_engine(folder: Path, rows: int) -> Numbers:
    """`vllm.LLM.generate` on all prompts at once, after a warm-up."""
    from cpo_ray.sampling.negatives.autoregressive import sampling_parameters
    from cpo_ray.sampling.vllm_sampler import engine_arguments, set_environment

    config = configure(rows)
    selection, reference = prepare(config, folder)
    set_environment(config.cluster.threads_per_worker)
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(**engine_arguments(config, reference.path))
    kind, decoding = "autoregressive", config.sampling.sampled["autoregressive"]
    examples = selection.table.to_pylist()
    parameters = [
        SamplingParams(
            **sampling_parameters(
                kind,
                decoding,
                LONGEST,
                reference.eos,
                config.seed,
                e["id"],
                reference.vocabulary,
                SAMPLES,
                attempt=0,
            )
        )
        for e in examples
    ]
    prompts = [TokensPrompt(prompt_token_ids=e["prompt_ids"]) for e in examples]
    llm.generate(prompts[:8], parameters[:8], use_tqdm=False)
    llm.reset_prefix_cache()
    began = clock()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    ended = clock()
    return speeds([len(sample.token_ids) for output in outputs for sample in output.outputs], began, ended)


class TimedSampler(VllmSampler):
    """Records the wall and processor time at which each unit arrived and was done."""

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        from cpo_ray.sampling.units import add_work, read_units, write_units

        began = clock()
        async for done in super().__call__(batch):
            ended = clock()
            units = read_units(done)
            for name, seconds in zip(CLOCK, (began[0], ended[0], began[1], ended[1]), strict=True):
                add_work(units[0], name, redraws=0, tokens=0, seconds=seconds)
            yield write_units(units)


def engine_in_ray_data(folder: Path, rows: int) -> Numbers:
    """The same through Ray Data: all tokens, from the first unit's arrival at the actor to the last unit's at the driver."""
    from cpo_ray.cluster.session import ray_cluster
    from cpo_ray.sampling import vllm_sampler
    from cpo_ray.sampling.dataset import sampled_units
    from cpo_ray.sampling.groups import unit_drawer
    from cpo_ray.sampling.units import read_units

    config = configure(rows)
    selection, reference = prepare(config, folder)
    starts = list(range(0, len(selection.table), config.sampling.batch_rows))
    vllm_sampler.VllmSampler = TimedSampler  # type: ignore[misc]
    with ray_cluster(config.cluster) as cluster:
        cluster.ensure()
        lengths, times = [], []
        units = sampled_units(config, reference, unit_drawer(config, selection, reference), starts)
        for batch in units.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
            for unit in read_units(batch):
                lengths += [len(candidate) for group in unit["groups"] for candidate in group["candidate_ids"][1:]]
                times.append({work["kind"]: work["seconds"] for work in unit["work"]})
        ended = time.monotonic()
    began, _, processor_began, processor_ended = ([each[name] for each in times] for name in CLOCK)
    return speeds(lengths, (min(began), min(processor_began)), (ended, max(processor_ended)))


def hugging_face(folder: Path, rows: int, *sizes: str) -> Numbers:
    """`generate` on prompts sorted by length, at its best batch size, which is found on a quarter of the prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    config = configure(rows)
    selection, reference = prepare(config, folder)
    torch.set_num_threads(config.cluster.threads_per_worker)
    model = AutoModelForCausalLM.from_pretrained(reference.path).eval()
    prompts = selection.table["prompt_ids"].to_pylist()
    prompts.sort(key=len)

    def generate(batch: Sequence[list[int]]) -> list[int]:
        longest = max(map(len, batch))
        ids = torch.tensor([[reference.eos] * (longest - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, top_k=config.sampling.top_k, num_return_sequences=SAMPLES,
                max_new_tokens=LONGEST, pad_token_id=reference.eos, eos_token_id=reference.eos,
            )[:, longest:]  # fmt: skip
        ended = (out == reference.eos).long().cumsum(1)
        return ((ended == 0) | ((ended == 1) & (out == reference.eos))).sum(1).tolist()

    def measure(prompts: Sequence[list[int]], size: int) -> Numbers:
        began = clock()
        lengths = [n for start in range(0, len(prompts), size) for n in generate(prompts[start : start + size])]
        return speeds(lengths, began, clock())

    generate(prompts[:4])
    by_size = {size: measure(prompts[::4], size)["tokens_per_second"] for size in map(int, sizes or SIZES)}
    best = max(by_size, key=lambda size: by_size[size])
    return measure(prompts, best) | {f"a quarter, by {size}": speed for size, speed in by_size.items()}


def clock() -> tuple[float, float]:
    """Wall seconds, and processor seconds of this process and its children."""
    return time.monotonic(), processor_seconds()


def processor_seconds() -> float:
    """Of this process and its children."""
    process = psutil.Process()
    return sum(
        times.user + times.system for times in (p.cpu_times() for p in [process, *process.children(recursive=True)])
    )


def speeds(lengths: Sequence[int], began: tuple[float, float], ended: tuple[float, float]) -> Numbers:
    """Tokens per wall second and per processor second, and the lengths of the samples."""
    seconds, processor = (after - before for before, after in zip(began, ended, strict=True))
    cuts = quantiles(lengths, n=4)
    return {
        "tokens_per_second": sum(lengths) / seconds,
        "tokens_per_processor_second": sum(lengths) / processor,
        "seconds": seconds,
        "processor_seconds": processor,
        "mean_tokens": mean(lengths),
        "quarter": cuts[0],
        "median": cuts[1],
        "three_quarters": cuts[2],
        "without_end": sum(length >= LONGEST for length in lengths) / len(lengths),
    }


def an_ratios(measure: Callable[..., Numbers], folder: Path, rows: int) -> dict[str, Any]:
    """Bare, Ray, bare, Ray: the spread shows the drift of the machine."""
    bare, ours = [], []
    for _ in range(2):
        bare.append(measure("bare", folder, rows))
        ours.append(measure("ray", folder, rows))
    theirs = measure("hugging_face", folder, rows)
    entries = {}
    for suffix, speed in (("", "tokens_per_second"), ("_by_processor_time", "tokens_per_processor_second")):
        what = f"{speed.replace('_', ' ')} of AN through Ray Data, samples of {ours[0]['mean_tokens']:.0f} tokens"
        pairs = [mine[speed] / other[speed] for mine, other in zip(ours, bare, strict=True)]
        entries[f"an_against_bare_engine{suffix}"] = ratio(pairs, ">= 0.9", "vllm.LLM.generate", what)
        pairs = [mine[speed] / theirs[speed] for mine in ours]
        entries[f"an_against_hugging_face{suffix}"] = ratio(pairs, ">= 4", "batched generate", what)
    return entries
