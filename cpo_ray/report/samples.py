"""Data of the page's sample browser, as JSON that is safe inside a script element."""

import json
from collections.abc import Sequence
from typing import Any

from cpo_ray.report.findings import label_of
from cpo_ray.report.method import BASELINE
from cpo_ray.report.run_contents import RunContents, all_decodings

MAX_CHARACTERS = 24_000_000  # of text in the page; a browser needs seconds to open a larger one
UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def collect_samples(runs: Sequence[RunContents]) -> dict[str, Any]:
    """Collect the prompts in file order, with every model's answer and verdict under every decoding.

    `answers[decoding][model]` of a row is [text, outcome, flipped, finish reason], or null if there is none; the indices
    are those of `decodings` and `models`. `baselines[model]` is the index of the MLE model of the same run, or -1.
    `total` is the number of prompts; `rows` may hold only the first of them.
    """
    answered = [(run, model) for run in runs for model in run.models if model in run.generations]
    names = [label_of(run, model, several=len(runs) > 1) for run, model in answered]
    baselines = [_baseline(answered, run, model) for run, model in answered]
    available = {name for run, model in answered for name in run.generations[model]}
    decodings = [name for name in all_decodings(runs) if name in available]
    answers = [[_answers(run, model, decoding) for run, model in answered] for decoding in decodings]
    prompts: dict[str, dict[str, Any]] = {}
    categories: dict[str, str] = {}
    for run, model in answered:
        categories |= run.categories
        for found in run.generations[model].values():
            for row in found:
                prompts.setdefault(row["id"], row)
    rows: list[dict[str, Any]] = []
    characters = 0
    for key, row in prompts.items():
        table = [[found.get(key) for found in line] for line in answers]
        characters += len(row["prompt"]) + len(row["reference"])
        characters += sum(len(answer[0]) for line in table for answer in line if answer)
        if characters > MAX_CHARACTERS:
            break
        rows.append(
            {
                "id": key,
                "category": categories.get(key, ""),
                "prompt": row["prompt"],
                "gold": row["reference"],
                "answers": table,
            }
        )
    return {"decodings": decodings, "models": names, "baselines": baselines, "rows": rows, "total": len(prompts)}


def embed_json(value: Any) -> str:
    """Encode JSON so that no string in it can end the surrounding script element or open a comment in it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(UNSAFE)


def _baseline(answered: Sequence[tuple[RunContents, str]], run: RunContents, model: str) -> int:
    if model == BASELINE:
        return -1
    places = [index for index, (other, name) in enumerate(answered) if other is run and name == BASELINE]
    return places[0] if places else -1


def _answers(run: RunContents, model: str, decoding: str) -> dict[str, list[Any]]:
    """Return [text, outcome, flipped, finish reason] by row id."""
    verdicts = {row["id"]: row for row in run.verdicts.get(model, {}).get(decoding, [])}
    return {
        row["id"]: [
            row["response"],
            verdicts.get(row["id"], {}).get("outcome"),
            bool(verdicts.get(row["id"], {}).get("flipped")),
            row["finish_reason"],
        ]
        for row in run.generations[model].get(decoding, [])
    }
