"""A run directory like that of a finished pipeline, written in a second: plausible curves, 5 models, 500 test rows."""

import json
import math
import random
import zlib

import numpy as np
import pyarrow as pa

from cpo_ray.artifacts import Manifest, write_json, write_table
from cpo_ray.evaluation.text_scores import TEXT_METRICS
from cpo_ray.records import EXAMPLE_SCHEMA, GROUP_SCHEMA
from cpo_ray.report.method import BASELINE

MODELS = {"reference": 0.36, "mle": 0.41, "cpo": 0.45, "merged-0.30": 0.47, "merged-0.70": 0.44}
HOSTILE = "</script><script>window.hacked = true</script><!-- <img src=x onerror='window.hacked=1'> \u2028 ]]>"
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "harbor", "island", "juniper"]
BIASES = {
    "order": "both",
    "length_controlled": {"rate": 0.448, "low": 0.409, "high": 0.487, "effect": 0.4},
    "position_bias": {"rate": 0.52, "low": 0.48, "high": 0.56, "p_value": 0.3, "n": 495},
}
COMPARED = {"similarity", "length_distance", "energy_distance"}  # with the truth
MIX = {"batch": 3, "meanfield": 5, "truncation": 3}
CONFIG = {
    "name": "demo",
    "seed": 17,
    "data": {"source": "synthetic", "train_rows": 3000, "test_rows": 500},
    "model": {"path": None, "architecture": "llama", "hidden_size": 160, "layers": 4},
    "sampling": {"negatives": {"autoregressive": 0, **MIX}, "top_k": 50, "meanfield_fraction": 0.15},
    "training": {"steps": 300, "learning_rate": 1e-4, "schedule": "cosine"},
    "objective": {"beta": 5.0, "ranked": True, "mle_weight": 0.0},
    "merging": {"alphas": [0.3, 0.7]},
    "generation": {"decodings": {"greedy": {"temperature": 0.0}, "top_p": {"temperature": 1.0, "top_p": 0.9}}},
}


def make_fake_run(root, rows=500, steps=300, decodings=("greedy", "top_p"), models=MODELS, judge="oracle", **changes):
    """Write the run directory; the first test prompt is hostile. changes: sections merged into CONFIG."""
    rng = random.Random(1)
    config = {key: merge(CONFIG.get(key), changes.get(key)) for key in {**CONFIG, **changes}}
    write_json(root / "config.json", config)
    packages = {"torch": "2.13.0+cpu", "ray": "2.60.0"}
    environment = {"cpo_ray": "0.1.0", "git_revision": "4f2c9e1", "python": "3.11.9", "packages": packages, "cpus": 2}
    write_json(root / "environment.json", {**environment, "memory_gib": 16.0, "seed": 17})
    tests = [_example(rng, index) for index in range(rows)]
    tests[0]["prompt"] = tests[0]["response"] = HOSTILE
    write_table(root / "data" / "test" / "rows.parquet", pa.Table.from_pylist(tests, EXAMPLE_SCHEMA))
    counts = {
        "train_rows": 3000,
        "validation_rows": 0,
        "test_rows": rows,
        "truncated_responses": 12,
        "responses_without_eos": 12,
    }
    data = _manifest(root / "data", 2.1, {"train/rows.parquet": 3000, "test/rows.parquet": rows}, 0, counts)
    _groups(root / "groups" / "train", rng)
    _metrics(root / "metrics.jsonl", steps)
    mauve, answers = {}, {}
    for order, (model, rate) in enumerate(models.items()):
        made = _manifest(root / "models" / model, 81.4 if order < 3 else 0.4, {"model.safetensors": 0}, 4 + order)
        reads = {"data": data, f"models/{model}": made}
        answers[f"generations/{model}"] = _answers(root, model, rate, tests, decodings, order, judge, reads)
        mean = round(0.6 + rate / 2 + rng.uniform(-0.02, 0.02), 4)
        scores = {"mean": mean, "deviation": 0.011, "scores": [mean] * 3, "rows": rows}
        mauve[model] = {name: {**scores, "mean": mean - 0.03 * index} for index, name in enumerate(decodings)}
    write_json(root / "mauve" / "scores.json", mauve)
    preferred = {
        model: {"greedy": {"n": rows, "win_rate": rate + 0.02, "ci95": [rate - 0.02, rate + 0.06]}}
        for model, rate in models.items()
    }
    write_json(root / "reward" / "scores.json", preferred)
    for order, stage in enumerate(("reward", "mauve")):
        _manifest(root / stage, 31.0, {"scores.json": 0}, 30 + order, reads=answers)
    for order, (model, rate) in enumerate(models.items()):
        _texts(root, model, rate, decodings, 40 + order, answers)


def _texts(root, model, rate, decodings, order, answers):
    """Text metrics that were not measured on the answers: a plausible value of each."""
    compared = f"generations/{BASELINE}" in answers
    score = {"answers": _estimate(rate), "truth": _estimate(0.1), "to_truth": _estimate(rate - 0.1)}
    score["to_baseline"] = _estimate(rate - MODELS[BASELINE]) if compared and model != BASELINE else None
    apart = {**score, "truth": None, "to_truth": None}
    metrics = {name: apart if name in COMPARED else score for name in TEXT_METRICS}
    scores = {"rows": 500, "empty": 3, "baseline": BASELINE if score["to_baseline"] else None, "metrics": metrics}
    write_json(root / "text_metrics" / model / "scores.json", dict.fromkeys(decodings, scores))
    reads = {name: answers[name] for name in (f"generations/{model}", f"generations/{BASELINE}") if name in answers}
    _manifest(root / "text_metrics" / model, 1.0, {"scores.json": 0}, order, reads=reads)


def _estimate(value):
    return {"value": value, "low": value - 0.03, "high": value + 0.04, "n": 500}


def merge(before, after):
    if isinstance(before, dict) and isinstance(after, dict):
        return {**before, **after}
    return before if after is None else after


def _example(rng, index):
    category = ("sorting", "counting", "reversing", "arithmetic", "extraction")[index % 5]
    words = rng.sample(WORDS, rng.randint(3, 7))
    prompt = (
        f"Here is a list of words: {', '.join(words)}.\nPlease do the task named {category}, and answer in one line.\n"
    )
    response = " ".join(sorted(words))
    ids = {"prompt_ids": [1, 2], "response_ids": [3, 0]}
    return {
        "id": f"{index:016x}",
        "source": "synthetic",
        "category": category,
        "prompt": prompt,
        "response": response,
        **ids,
    }


def _manifest(folder, seconds, rows, order, summary=None, reads=()):
    files = {
        name: {"sha256": "0" * 64, "bytes": 1000, **({"rows": count} if count else {})} for name, count in rows.items()
    }
    created = f"2026-01-02T03:{order:02d}:05Z"
    parts = {
        "inputs": {"config": {"seed": 17}, "reads": dict(reads)},
        "files": files,
        "summary": summary or {},
        "seconds": seconds,
        "created": created,
    }
    write_json(folder / "manifest.json", {**parts, "version": "0.1.0"})
    return Manifest(**parts).fingerprint


def _groups(folder, rng):
    groups = []
    for index in range(6):
        gold = " ".join(rng.sample(WORDS, 5))
        kinds = ["gold", *(kind for kind, count in MIX.items() for _ in range(count))]
        texts = [gold, *(" ".join(rng.sample(WORDS, rng.randint(1, 5))) for _ in kinds[1:])]
        similarity = [1.0, *sorted((rng.uniform(0.1, 0.99) for _ in kinds[1:]), reverse=True)]
        group = {
            "id": f"{index:016x}",
            "prompt": f"Sort these words: {gold}.\n",
            "prompt_ids": [1],
            "candidate_kind": kinds,
        }
        group |= {"candidate_ids": [[1, 0]] * len(kinds), "candidate_text": texts, "similarity": similarity}
        groups.append(group | {"rank": list(range(len(kinds))), "ref_logps": [rng.uniform(-40, -3) for _ in kinds]})
    write_table(folder / "00000.parquet", pa.Table.from_pylist(groups, GROUP_SCHEMA))
    stats = {}
    for place, (kind, count) in enumerate({"gold": 1, **MIX}.items()):
        facts = {
            "mean_tokens": 9.4,
            "mean_similarity": 0.62,
            "mean_ref_logp": -31.5,
            "tokens_per_second": 900.0 + place,
        }
        facts |= {"equal_to_gold": 41 * (kind == "meanfield"), "duplicates": 7 * place, "redraws": 120 * place}
        facts |= {"tokens": 28200, "equal_to_gold_rate": 0.01, "duplicate_rate": 0.01, "redraw_rate": 0.1}
        facts["length"] = {"p5": 3.0, "median": 9.0, "p95": 16.0, "histogram": _bell(0, 24, 20, 7 + place)}
        facts["similarity"] = {"p5": 0.2, "median": 0.6, "p95": 0.9, "histogram": _bell(-1, 1, 40, 28 + 3 * place)}
        stats[kind] = {"count": 3000 * count, **facts}
    write_json(folder / "stats.json", stats)
    _manifest(folder, 64.8, {"00000.parquet": 3000}, 5, {"rows": 3000})


def _bell(low, high, bins, middle):
    counts = [round(1000 * math.exp(-((index - middle) ** 2) / 8)) for index in range(bins)]
    return {"low": low, "high": high, "counts": counts}


def _metrics(path, steps):
    rng = np.random.default_rng(2)
    lines = []
    for stage in ("reference", "cpo", "mle"):
        for step in range(1, steps + 1):
            progress = 1 - math.exp(-4 * (step - 1) / steps)
            noise = float(rng.normal())
            row = {
                "stage": stage,
                "step": step,
                "learning_rate": 1e-4,
                "grad_norm": 1.0,
                "tokens_per_second": 9e3,
                "seconds": 0.3,
            }
            row |= {"gold_logp": -6.2 + 1.1 * progress + 0.15 * noise, "loss": 0.72 - 0.2 * progress + 0.02 * noise}
            if stage == "reference":
                row |= {"gold_logp": -40 + 34 * progress + noise, "loss": 6.9 - 6.2 * progress + 0.05 * noise}
            if stage == "cpo":
                row |= {
                    "loss": 19.9872 if step == 1 else 19.98 - 6 * progress + 0.3 * noise,
                    "masked": 0 if step == 1 else 3,
                }
                row |= {
                    "margin": 9 * progress + 0.4 * noise * (step > 1),
                    "accuracy": 0.1 + 0.8 * progress + 0.03 * noise,
                }
                falls = {"batch": 30, "meanfield": 9, "truncation": 4}
                row["negative_logp"] = {kind: -20 - fall * progress + noise for kind, fall in falls.items()}
            lines.append(row)
            if step % 50 == 0:
                keys = ("loss", "margin", "accuracy", "gold_logp")
                measured = {key: row[key] * 1.02 for key in keys if key in row}
                lines.append({"stage": stage, "step": step, "validation": measured})
    restarted = {**lines[0], "loss": 99.0}
    path.write_text("".join(json.dumps(line) + "\n" for line in [restarted, *lines]), encoding="utf-8")


def _answers(root, name, rate, tests, decodings, order, judge, reads):
    for decoding in decodings:
        rng = random.Random(zlib.crc32(f"{name}{decoding}".encode()))
        generations, verdicts = [], []
        for example in tests:
            outcome = rng.choices(["win", "tie", "loss", "invalid"], [rate - 0.1, 0.2, 0.9 - rate, 0.01])[0]
            words = example["response"].split()
            rng.shuffle(words)
            text = example["response"] if outcome == "tie" else " ".join(words[: rng.randint(1, len(words))])
            generation = {
                "id": example["id"],
                "prompt": example["prompt"],
                "reference": example["response"],
                "response": text,
            }
            generations.append(
                {**generation, "tokens": len(words), "finish_reason": "length" if rng.random() < 0.05 else "stop"}
            )
            flipped = outcome == "tie" and rng.random() < 0.4
            verdict = {"id": example["id"], "outcome": outcome, "answers": ["A", "B"], "flipped": flipped}
            verdicts.append({**verdict, "candidate_words": len(text.split()), "reference_words": len(words)})
        for folder, rows in (("generations", generations), ("verdicts", verdicts)):
            path = root / folder / name / f"{decoding}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    judged = {decoding: {"n": len(tests), "judge": judge, **BIASES} for decoding in decodings}
    files = {f"{decoding}.jsonl": len(tests) for decoding in decodings}
    made = _manifest(root / "generations" / name, 12.5, files, 10 + order, reads=reads)
    _manifest(
        root / "verdicts" / name, 9.5, files, 20 + order, judged, {"data": reads["data"], f"generations/{name}": made}
    )
    return made
