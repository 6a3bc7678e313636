"""The rows that the page's browser of samples shows, as JSON that is safe inside a script element."""

import json
from typing import Any

from cpo_ray.evaluation.page.run import Run

MAX_CHARACTERS = 24_000_000  # of text in the page; beyond that a browser takes seconds to open it
UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def collect_samples(run: Run) -> dict[str, Any]:
    """Prompts in file order with every model's answer and verdict under every decoding.

    `answers[decoding][model]` of a row is [text, outcome, flipped, finish reason], or null where there is none; both
    indices follow `decodings` and `models`. `total` counts the prompts, of which `rows` may hold only the first.
    """
    answered = [model for model in run.models if model in run.generations]
    decodings = [name for name in run.decodings if any(name in run.generations[model] for model in answered)]
    answers = _answers(run, answered, decodings)
    prompts: dict[str, dict[str, Any]] = {}
    for model in answered:
        for found in run.generations[model].values():
            for row in found:
                prompts.setdefault(row["id"], row)
    rows: list[dict[str, Any]] = []
    characters = 0
    for key, row in prompts.items():
        table = [[answers[name, model].get(key) for model in answered] for name in decodings]
        characters += len(row["prompt"]) + len(row["reference"])
        characters += sum(len(answer[0]) for line in table for answer in line if answer)
        if characters > MAX_CHARACTERS:
            break
        rows.append(
            {
                "id": key,
                "category": run.categories.get(key, ""),
                "prompt": row["prompt"],
                "gold": row["reference"],
                "answers": table,
            }
        )
    return {"decodings": decodings, "models": answered, "rows": rows, "total": len(prompts)}


def embed_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment there, whatever strings it holds."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(UNSAFE)


def _answers(run: Run, models: list[str], decodings: list[str]) -> dict[tuple[str, str], dict[str, list[Any]]]:
    answers = {}
    for model in models:
        for name in decodings:
            verdicts = {row["id"]: row for row in run.verdicts.get(model, {}).get(name, [])}
            answers[name, model] = {
                row["id"]: [
                    row["response"],
                    verdicts.get(row["id"], {}).get("outcome"),
                    bool(verdicts.get(row["id"], {}).get("flipped")),
                    row["finish_reason"],
                ]
                for row in run.generations[model].get(name, [])
            }
    return answers
