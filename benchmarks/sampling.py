"""The sampling stage against its parts. `make bench-sampling`; `--only an` (or overlap, memory, dolly); ratios from one run.

an       autoregressive negatives through Ray Data against the bare engine on the same prompts and settings, and against
         Hugging Face's `generate` in the batch size that suits it best: tokens per second, engine starts excluded.
overlap  the whole stage against its slowest part alone, actor starts included in both.
memory   the driver's peak above its start, on 1,000 and on many rows of batch and truncation negatives.
dolly    MixNR groups of the training split of Dolly with a small GPT-2: seconds and rows per second.

Every measurement has a process of its own: an engine leaves nothing behind for the next.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, ROOT, machine, not_measured, ratio, write_results
from cpo_ray.config import RunConfig

SAMPLES = 4  # autoregressive negatives of a prompt
GIB = 2**20  # kB, as getrusage counts
DOLLY = ROOT.parent / "shared" / "data" / "dolly" / "databricks-dolly-15k.jsonl"
TOKENIZER = ROOT.parent / "shared" / "data" / "tokenizers"


def configure(rows: int, negatives: dict[str, int], **sampling: Any) -> RunConfig:
    """The demo's model and task, `rows` prompts, and these negatives alone."""
    counts = {"autoregressive": 0, "batch": 0, "meanfield": 0, "truncation": 0} | negatives
    return RunConfig.model_validate(
        {
            "name": "bench",
            "data": {"train_rows": rows, "validation_rows": 8, "test_rows": 8},
            "sampling": {"negatives": counts, "redraws": 0, "engine": {"kv_cache_gib": 1.0}, **sampling},
            "cluster": {"object_store_gib": 1.0},
        }
    )


def prepare(config: RunConfig, folder: Path) -> tuple[Path, Path]:
    """The data artifact's folder, and a reference with random weights."""
    from cpo_ray.data.examples import prepare_examples
    from cpo_ray.training.models import initialize_model

    data, reference = folder / "data", folder / "reference"
    if not data.exists():
        data.mkdir(parents=True)
        prepare_examples(config, data)
        initialize_model(config.model, data / "tokenizer", config.seed, reference)
    return data, reference


def bare_engine(folder: Path, rows: int) -> dict[str, float]:
    """Tokens per second of `vllm.LLM.generate`, all prompts at once, after a warm-up."""
    from cpo_ray.artifacts import read_table
    from cpo_ray.sampling.autoregressive import sampling_parameters
    from cpo_ray.sampling.engine import Engine
    from cpo_ray.sampling.reference import read_reference

    config = configure(rows, {"autoregressive": SAMPLES})
    data, path = prepare(config, folder)
    reference = read_reference(path)
    engine = Engine(config, reference.path, reference.eos)
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    examples = read_table(data / "train").to_pylist()
    keywords = [
        sampling_parameters(
            config.sampling, config.data.max_response_tokens, reference.eos, config.seed, e["id"], engine.vocabulary,
            n=SAMPLES, attempt=0,
        )
        for e in examples
    ]  # fmt: skip
    prompts = [TokensPrompt(prompt_token_ids=e["prompt_ids"]) for e in examples]
    parameters = [SamplingParams(**each) for each in keywords]
    engine.llm.generate(prompts[:64], parameters[:64], use_tqdm=False)
    started = time.perf_counter()
    outputs = engine.llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"tokens_per_second": sum(len(s.token_ids) for o in outputs for s in o.outputs) / seconds}


def engine_units(config: RunConfig, data: Path, reference: Path, folder: Path) -> Any:
    """A Ray Dataset: what the engine makes of the training rows, neither scored nor ranked."""
    from cpo_ray.sampling.flow import sampled_units
    from cpo_ray.sampling.groups import prepare as select
    from cpo_ray.sampling.groups import rows_drawer

    model, selection, _ = select(config, data / "train", reference, folder)
    starts = range(0, len(selection.table), config.sampling.batch_rows)
    return sampled_units(config, model, rows_drawer(config, selection, model), starts)


def engine_in_ray_data(folder: Path, rows: int) -> dict[str, float]:
    """The same through Ray Data, from the first batch that is done to the last: the engine has started by then."""
    from cpo_ray.cluster import ray_cluster
    from cpo_ray.sampling.units import read_units

    config = configure(rows, {"autoregressive": SAMPLES})
    data, path = prepare(config, folder)
    with ray_cluster(config.cluster) as cluster:
        cluster.ensure()
        units = engine_units(config, data, path, folder)
        done: list[tuple[float, int]] = []
        for batch in units.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
            groups = [group for unit in read_units(batch) for group in unit["groups"]]
            done.append((time.perf_counter(), sum(len(c) for g in groups for c in g["candidate_ids"][1:])))
    first = done[0][0]
    steady = [tokens for at, tokens in done if at > first + 0.5]  # units of the first batch come together
    return {"tokens_per_second": sum(steady) / (done[-1][0] - first)}


def hugging_face(folder: Path, rows: int) -> dict[str, float]:
    """Tokens per second of `generate` on prompts of like length, in the best of three batch sizes."""
    import torch
    from transformers import AutoModelForCausalLM

    from cpo_ray.artifacts import read_table

    config = configure(rows, {"autoregressive": SAMPLES})
    data, path = prepare(config, folder)
    torch.set_num_threads(config.cluster.threads_per_worker)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    eos = model.config.eos_token_id
    prompts = sorted(read_table(data / "train")["prompt_ids"].to_pylist(), key=len)
    speeds = {}
    for size in (8, 32, 128):
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        tokens, started = 0, time.perf_counter()
        for batch in batches[:: max(1, len(batches) * size // 256)]:  # some 256 prompts of every length
            longest = max(map(len, batch))
            ids = torch.tensor([[eos] * (longest - len(prompt)) + prompt for prompt in batch])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
            with torch.inference_mode():
                out = model.generate(
                    ids, attention_mask=mask, do_sample=True, top_k=config.sampling.top_k, num_return_sequences=SAMPLES,
                    max_new_tokens=config.data.max_response_tokens, pad_token_id=eos,
                )[:, longest:]  # fmt: skip
            ended = (out == eos).long().cumsum(1)
            tokens += int(((ended == 0) | ((ended == 1) & (out == eos))).sum())
        speeds[size] = tokens / (time.perf_counter() - started)
    return {
        "tokens_per_second": max(speeds.values()),
        **{f"batches of {size}": speed for size, speed in speeds.items()},
    }


def stage_seconds(folder: Path, rows: int, part: str) -> dict[str, float]:
    """Seconds of the stage, or of one of its parts alone; the cluster is up before."""
    from cpo_ray.artifacts import Artifact, Manifest
    from cpo_ray.cluster import ray_cluster
    from cpo_ray.sampling.groups import make_groups
    from cpo_ray.sampling.reranking import rank_again

    whole = {"autoregressive": SAMPLES, "batch": 3, "meanfield": 5, "truncation": 3}
    config = configure(rows, whole, batch_rows=32, shard_rows=64)
    data, path = prepare(config, folder)
    out = folder / part
    out.mkdir()
    with ray_cluster(config.cluster) as cluster:
        cluster.ensure()
        started = time.perf_counter()
        if part == "whole":
            make_groups(config, data, path, out, lambda _: None)
        elif part == "engine":
            for _ in engine_units(config, data, path, folder).iter_batches(batch_size=1, prefetch_batches=1):
                pass
        elif part == "ranker":
            finished = Artifact("groups/train", folder / "whole", Manifest({}, {}, {}, 0.0, ""))
            rank_again(config, finished, path, out, lambda _: None)
        return {"seconds": time.perf_counter() - started}


def driver_memory(folder: Path, rows: int) -> dict[str, float]:
    """GiB by which the driver's peak exceeds what it held when the stage began, and seconds."""
    from cpo_ray.cluster import ray_cluster
    from cpo_ray.sampling.groups import make_groups

    config = configure(rows, {"batch": 1, "truncation": 1}, embedder=str(tiny_embedder(folder)))
    config = config.model_copy(update={"model": config.model.model_copy(update=SMALLEST)})
    data, path = synthetic_rows(config, folder, rows)
    (folder / "groups").mkdir()
    with ray_cluster(config.cluster) as cluster:
        cluster.ensure()
        import ray.data  # noqa: F401 - what is imported is not what the rows take

        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        make_groups(config, data, path, folder / "groups", lambda _: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"gib": (peak - before) / GIB, "seconds": time.perf_counter() - started}


SMALLEST = {"hidden_size": 32, "layers": 1, "heads": 1, "intermediate_size": 64}


def synthetic_rows(config: RunConfig, folder: Path, rows: int) -> tuple[Path, Path]:
    """Invented examples, since the embedded task has only some thousands; a tokenizer and the smallest of references."""
    import numpy as np
    import pyarrow as pa

    from cpo_ray.artifacts import write_table
    from cpo_ray.data.examples import prepare_examples
    from cpo_ray.records import EXAMPLE_SCHEMA
    from cpo_ray.training.models import initialize_model

    small, data, reference = folder / "small", folder / "data", folder / "reference"
    small.mkdir()
    prepare_examples(configure(1000, {"batch": 1}), small)
    initialize_model(config.model, small / "tokenizer", 17, reference)
    draw = np.random.default_rng(17)
    for part, first in enumerate(range(0, rows, 10_000)):
        number = range(first, min(first + 10_000, rows))
        texts = [" ".join(map(str, draw.integers(0, 1000, 12))) for _ in number]
        columns = {
            "id": [f"{n:016x}" for n in number],
            "source": ["invented"] * len(number),
            "category": [""] * len(number),
            "prompt": texts,
            "response": texts,
            "prompt_ids": [draw.integers(1, 300, 24).tolist() for _ in number],
            "response_ids": [[*draw.integers(1, 300, 15).tolist(), 0] for _ in number],
        }
        table = pa.table(columns, schema=EXAMPLE_SCHEMA)
        write_table(data / "train" / f"part-{part:05d}.parquet", table)
    return data, reference


def tiny_embedder(folder: Path) -> Path:
    """A sentence-transformers directory that costs next to nothing: the rows are measured, not the embedding."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, **{str(n): n + 1 for n in range(1000)}}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=8)]).save(str(folder / "embedder"))
    return folder / "embedder"


def dolly(folder: Path, rows: int) -> dict[str, float]:
    """MixNR groups of Dolly's training split with the GPT-2 of configs/dolly_small.yaml, untrained."""
    from cpo_ray.cluster import ray_cluster
    from cpo_ray.configfile import load_config
    from cpo_ray.sampling.groups import make_groups

    overrides = (
        f"data.path={DOLLY}", f"data.tokenizer.path={TOKENIZER}", f"sampling.rows={rows}",
        "sampling.negatives={autoregressive: 0, batch: 3, meanfield: 5, truncation: 3}",
    )  # fmt: skip
    config = load_config(ROOT / "configs" / "dolly_small.yaml", overrides)
    data, path = prepare(config, folder)
    (folder / "groups").mkdir()
    with ray_cluster(config.cluster) as cluster:
        cluster.ensure()
        started = time.perf_counter()
        summary = make_groups(config, data, path, folder / "groups", lambda _: None)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "rows": summary["rows"], "rows_per_second": summary["rows"] / seconds}


MEASURES: dict[str, Callable[..., dict[str, float]]] = {
    "bare": bare_engine,
    "ray": engine_in_ray_data,
    "hugging_face": hugging_face,
    "stage": stage_seconds,
    "memory": driver_memory,
    "dolly": dolly,
}


def measure(name: str, folder: Path, rows: int, *more: str) -> dict[str, float]:
    """One measurement in a process of its own; what that says goes to a log beside its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.sampling", "--measure", name, str(folder), str(rows), *more]
    with (folder / f"{name}.log").open("a") as log:
        ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, check=True)
    numbers: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    told = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
    sys.stderr.write(f"{' '.join([name, *more])}, {rows} rows: {told}\n")
    return numbers


def an_ratios(folder: Path, rows: int) -> dict[str, Any]:
    """Bare, Ray, bare: the machine's own drift shows in the spread."""
    bare = [measure("bare", folder, rows)["tokens_per_second"]]
    ours = measure("ray", folder, rows)["tokens_per_second"]
    bare.append(measure("bare", folder, rows)["tokens_per_second"])
    theirs = measure("hugging_face", folder, rows)["tokens_per_second"]
    return {
        "an_against_bare_engine": ratio(
            [ours / speed for speed in bare], ">= 0.9", "vllm.LLM.generate", "tokens/s of AN through Ray Data"
        ),
        "an_against_hugging_face": ratio(
            [ours / theirs], ">= 4", "batched generate", "tokens/s of AN through Ray Data"
        ),
    }


def overlap_ratio(folder: Path, rows: int) -> dict[str, Any]:
    """The whole and its parts, one after the other."""
    whole = measure("stage", folder, rows, "whole")["seconds"]
    alone = {part: measure("stage", folder, rows, part)["seconds"] for part in ("engine", "ranker")}
    slowest = max(alone, key=lambda part: alone[part])
    entry = ratio([whole / alone[slowest]], "<= 1.15", f"its {slowest} alone", "wall time of the whole stage")
    return {"stage_against_slowest_part": entry}


def memory_ratio(folder: Path, rows: int) -> dict[str, Any]:
    """Two sizes, and the larger one against the limit of 1 GiB."""
    few, many = (measure("memory", folder / str(size), size) for size in (1000, rows))
    what = f"GiB above its start that the driver takes for {rows:,} rows ({few['gib']:.2f} for 1,000)"
    return {"driver_memory_gib": ratio([many["gib"]], "<= 1", "the limit of 1 GiB", what)}


def dolly_ratio(folder: Path, rows: int) -> dict[str, Any]:
    """A figure, not a ratio: rows per second."""
    if not DOLLY.exists():
        return {
            "dolly_rows_per_second": not_measured(">= 0", "-", "rows/s of MixNR groups", "../shared/data is not here")
        }
    numbers = measure("dolly", folder, rows)
    what = f"rows/s of MixNR groups of Dolly, {numbers['rows']:,.0f} rows in {numbers['seconds']:,.0f} s"
    return {"dolly_rows_per_second": ratio([numbers["rows_per_second"]], ">= 0", "no target", what)}


PARTS: dict[str, tuple[Callable[[Path, int], dict[str, Any]], int]] = {
    "an": (an_ratios, 1024),
    "overlap": (overlap_ratio, 512),
    "memory": (memory_ratio, 100_000),
    "dolly": (dolly_ratio, 7505),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--rows", type=int, help="instead of the part's own number")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        name, folder, rows, *more = options.measure
        sys.stdout.write("\n" + json.dumps(MEASURES[name](Path(folder), int(rows), *more)) + "\n")
        sys.stdout.flush()
        os._exit(0)  # an engine's threads would keep the process
    ratios: dict[str, Any] = {}
    for name, (take, rows) in PARTS.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="cpo-ray-bench-") as folder:
                ratios |= take(Path(folder), options.rows or rows)
    command = "python -m benchmarks.sampling" + (f" --only {options.only}" if options.only else "")
    file = RESULTS / (f"sampling-{options.only}.json" if options.only else "sampling.json")
    write_results(file, command, machine(), ratios)


if __name__ == "__main__":
    main()
