"""The sampling stage compared with its parts. `make bench-sampling`; `--only an` (or overlap, memory, dolly) runs one part.

an       autoregressive negatives through Ray Data, compared with the bare engine on the same prompts and settings, and with
         Hugging Face's `generate` at its best batch size: tokens per second, without engine starts.
overlap  the whole stage for the case of `an`, scored and ranked, compared with its slowest part alone, actor starts included.
memory   the driver's peak memory above its start, for 1,000 and for many rows of batch and truncation negatives.
dolly    MixNR groups of Dolly's training split with a small GPT-2: seconds and rows per second.

Each measurement runs in its own process, so no engine affects the next one. Ratios are from measurements of one run.
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

from benchmarks import negatives
from benchmarks.results import RESULTS, ROOT, machine, not_measured, ratio, write_results
from cpo_ray.config import RunConfig

GIB = 2**20  # kB, as getrusage counts


def configure(rows: int, wanted: dict[str, int], **sampling: Any) -> RunConfig:
    """The model and task of configs/checkable.yaml with `rows` prompts and only these negatives."""
    counts = {"autoregressive": 0, "batch": 0, "meanfield": 0, "truncation": 0} | wanted
    return RunConfig.model_validate(
        {
            "name": "bench",
            "data": {"train_rows": rows, "validation_rows": 8, "test_rows": 8},
            "sampling": {"negatives": counts, "redraws": 0, "engine": {"kv_cache_gib": 1.0}, **sampling},
            "cluster": {"object_store_gib": 1.0},
        }
    )


def prepare(config: RunConfig, folder: Path) -> tuple[Path, Path]:
    """The folder of the data artifact, and of a reference with random weights."""
    from cpo_ray.data.examples import prepare_examples
    from cpo_ray.training.models import initialize_model

    data, reference = folder / "data", folder / "reference"
    if not data.exists():
        data.mkdir(parents=True)
        prepare_examples(config, data)
        initialize_model(config.model, data / "tokenizer", config.seed, reference)
    return data, reference


def engine_units(config: RunConfig, data: Path, reference: Path, folder: Path) -> Any:
    """The Ray Dataset of the training rows after the engine, neither scored nor ranked."""
    from cpo_ray.sampling.dataset import sampled_units
    from cpo_ray.sampling.groups import prepare as select
    from cpo_ray.sampling.groups import unit_drawer

    model, selection, _ = select(config, data / "train", reference, folder)
    starts = range(0, len(selection.table), config.sampling.batch_rows)
    return sampled_units(config, model, unit_drawer(config, selection, model), starts)


def stage_seconds(folder: Path, rows: int, part: str) -> dict[str, float]:
    """Seconds of the stage, or of one of its parts alone, on a running cluster.

    Engine, scorer and ranker need a core each, but the machine has two: they can only overlap if the slowest does most of the
    work, like an engine whose model is larger than the embedder. So this uses the case of `negatives.py`.
    """
    from cpo_ray.artifacts import Artifact, Manifest
    from cpo_ray.cluster.session import ray_cluster
    from cpo_ray.sampling.groups import make_groups
    from cpo_ray.sampling.reranking import rerank

    config = negatives.configure(rows)
    negatives.prepare(config, folder)
    data, path, out = folder / "data", folder / "reference", folder / part
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
            rerank(config, finished, path, out, lambda _: None)
        return {"seconds": time.perf_counter() - started}


def driver_memory(folder: Path, rows: int) -> dict[str, float]:
    """GiB of the driver's peak memory above its memory at the start of the stage, and seconds."""
    from cpo_ray.cluster.session import ray_cluster
    from cpo_ray.sampling.groups import make_groups

    config = configure(rows, {"batch": 1, "truncation": 1}, embedder=str(tiny_embedder(folder)))
    config = config.model_copy(update={"model": config.model.model_copy(update=SMALLEST)})
    data, path = synthetic_rows(config, folder, rows)
    (folder / "groups").mkdir()
    with ray_cluster(config.cluster) as cluster:
        cluster.ensure()
        import ray.data  # noqa: F401 - the memory of imports is not counted

        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        make_groups(config, data, path, folder / "groups", lambda _: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"gib": (peak - before) / GIB, "seconds": time.perf_counter() - started}


SMALLEST = {"hidden_size": 32, "layers": 1, "heads": 1, "intermediate_size": 64}


def synthetic_rows(config: RunConfig, folder: Path, rows: int) -> tuple[Path, Path]:
    """Synthetic examples, because the embedded task has only a few thousand; a tokenizer and a minimal reference."""
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
            "source": ["synthetic"] * len(number),
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
    """A sentence-transformers directory with almost no compute: the rows are measured, not the embedding."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, **{str(n): n + 1 for n in range(1000)}}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=8)]).save(str(folder / "embedder"))
    return folder / "embedder"


def dolly(folder: Path, rows: int) -> dict[str, float]:
    """MixNR groups of Dolly's training split with the GPT-2 of configs/dolly_small.yaml, untrained."""
    from cpo_ray.cluster.session import ray_cluster
    from cpo_ray.config.loading import load_config
    from cpo_ray.sampling.groups import make_groups

    overrides = (
        f"data.path={negatives.DOLLY}", f"data.tokenizer.path={negatives.TOKENIZER}", f"sampling.rows={rows}",
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
    "bare": negatives.bare_engine,
    "ray": negatives.engine_in_ray_data,
    "hugging_face": negatives.hugging_face,
    "stage": stage_seconds,
    "memory": driver_memory,
    "dolly": dolly,
}


def measure(name: str, folder: Path, rows: int, *more: str) -> dict[str, float]:
    """Run one measurement in its own process. Its stderr goes to a log in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.sampling", "--measure", name, str(folder), str(rows), *more]
    with (folder / f"{name}.log").open("a") as log:
        finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, check=True)
    numbers: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    summary = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
    sys.stderr.write(f"{' '.join([name, *more])}, {rows} rows: {summary}\n")
    return numbers


def an_ratios(folder: Path, rows: int) -> dict[str, Any]:
    """See `negatives.py`."""
    return negatives.an_ratios(measure, folder, rows)


def overlap_ratio(folder: Path, rows: int) -> dict[str, Any]:
    """The whole stage, then its parts alone."""
    whole = measure("stage", folder, rows, "whole")["seconds"]
    alone = {part: measure("stage", folder, rows, part)["seconds"] for part in ("engine", "ranker")}
    slowest = max(alone, key=lambda part: alone[part])
    entry = ratio([whole / alone[slowest]], "<= 1.15", f"its {slowest} alone", "wall time of the whole stage")
    return {"stage_against_slowest_part": entry}


def memory_ratio(folder: Path, rows: int) -> dict[str, Any]:
    """Two numbers of rows; the larger one is compared with the limit of 1 GiB."""
    few, many = (measure("memory", folder / str(size), size) for size in (1000, rows))
    what = f"GiB above its start that the driver takes for {rows:,} rows ({few['gib']:.2f} for 1,000)"
    return {"driver_memory_gib": ratio([many["gib"]], "<= 1", "the limit of 1 GiB", what)}


def dolly_ratio(folder: Path, rows: int) -> dict[str, Any]:
    """Not a ratio: rows per second."""
    if not negatives.DOLLY.exists():
        return {
            "dolly_rows_per_second": not_measured(">= 0", "-", "rows/s of MixNR groups", "../shared/data is missing")
        }
    numbers = measure("dolly", folder, rows)
    what = f"rows/s of MixNR groups of Dolly, {numbers['rows']:,.0f} rows in {numbers['seconds']:,.0f} s"
    return {"dolly_rows_per_second": ratio([numbers["rows_per_second"]], ">= 0", "no target", what)}


PARTS: dict[str, tuple[Callable[[Path, int], dict[str, Any]], int]] = {
    "an": (an_ratios, 256),
    "overlap": (overlap_ratio, 128),
    "memory": (memory_ratio, 100_000),
    "dolly": (dolly_ratio, 7505),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="run one part")
    parser.add_argument("--rows", type=int, help="number of rows; default: the part's own")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        name, folder, rows, *more = options.measure
        sys.stdout.write("\n" + json.dumps(MEASURES[name](Path(folder), int(rows), *more)) + "\n")
        sys.stdout.flush()
        os._exit(0)  # threads of an engine would keep the process alive
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
