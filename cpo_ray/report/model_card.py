"""Model cards for the Hugging Face hub: what a model is, how and on what data it was trained, its scores and its limits.

A card is written to `cards/<model>/README.md` in the report and then copied into the model's directory. The directory's
manifest does not list it, so the model's fingerprint does not change.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cpo_ray.artifacts import write_atomically
from cpo_ray.config.objective import LOSS_NAMES, REWARDED
from cpo_ray.report.adapter import describe_adapter, loading_code
from cpo_ray.report.fairness import compare_trainings, learning_rate_of, steps_of
from cpo_ray.report.findings import TableRow, format_p, signed
from cpo_ray.report.method import DEFAULT_LOSS, PAPER, describe_negatives, ranked_answers
from cpo_ray.report.provenance import dump_config, reproduce_command
from cpo_ray.report.rounds import round_of, rounds_of
from cpo_ray.report.run_contents import RunContents, alpha_of

CARD = "README.md"
NOT_EXPORTED = {"initial"}  # random weights
KNOWN_DATASETS = {"dolly": "databricks/databricks-dolly-15k"}
LOCAL_JUDGES = {"oracle", "overlap"}


def write_cards(run: RunContents, rows: Sequence[TableRow], out: Path) -> None:
    """Write out/<model>/README.md for every model of the run. rows: this run's rows of the table, of all decodings."""
    for name in run.manifests:
        folder, _, model = name.partition("/")
        if folder == "models" and model not in NOT_EXPORTED:
            with write_atomically(out / model / CARD) as temporary:
                temporary.write_text(render_card(run, model, rows), encoding="utf-8")


def place_cards(cards: Path, models: Path) -> list[Path]:
    """Copy the cards of a finished report into their model directories, and return the files written.

    The manifest of a model directory does not list the card, so the artifact does not change.
    """
    placed = []
    for card in sorted(cards.glob(f"*/{CARD}")):
        place = models / card.parent.name / CARD
        text = card.read_text(encoding="utf-8")
        if place.parent.is_dir() and not (place.is_file() and place.read_text(encoding="utf-8") == text):
            with write_atomically(place) as temporary:
                temporary.write_text(text, encoding="utf-8")
            placed.append(place)
    return placed


def render_card(run: RunContents, model: str, rows: Sequence[TableRow]) -> str:
    """Render one model's card: metadata as YAML, then Markdown."""
    mine = [row for row in rows if row["model"] == model]
    parts = [
        f"---\n{yaml.safe_dump(_metadata(run, model, mine), sort_keys=False, allow_unicode=True)}---\n",
        f"# {run.label}: {model}\n",
        _description(run, model) + "\n",
        "## How it was trained\n\n" + "\n".join(_training(run, model)) + "\n",
        "## Data\n\n" + "\n".join(_data(run)) + "\n",
        "## Results\n\n" + "\n".join(_results(mine)) + "\n",
        "## Limits\n\n" + "\n".join(_limits(run, mine)) + "\n",
        "## Use\n\n" + _use(run, model) + "\n",
        "## Configuration\n\n" + "\n".join(_configuration(run)) + "\n",
    ]
    return "\n".join(parts)


def _metadata(run: RunContents, model: str, rows: Sequence[TableRow]) -> dict[str, Any]:
    """Metadata for the hub. It has no licence, because that follows from the licences of the base model and the data."""
    base, source = (run.config.get("model") or {}).get("path"), run.setting[0]
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    metadata["tags"] = ["cpo_ray", "contrastive-preference-optimization"]
    if base and not Path(base).is_absolute():
        metadata["base_model"] = base
    if source in KNOWN_DATASETS:
        metadata["datasets"] = [KNOWN_DATASETS[source]]
    results = [_hub_result(source, row) for row in rows if row["win_rate"] is not None or row["mauve"] is not None]
    if results:
        metadata["model-index"] = [{"name": f"{run.label}-{model}", "results": results}]
    return metadata


def _hub_result(source: str, row: TableRow) -> dict[str, Any]:
    metrics = []
    if row["win_rate"] is not None:
        name = f"Win rate against the ground truth, {row['decoding']} decoding, judge {row['judge'] or 'not named'}"
        metrics.append({"type": "win_rate", "value": round(row["win_rate"], 4), "name": name})
    if row["mauve"] is not None:
        metrics.append({"type": "mauve", "value": round(row["mauve"], 4), "name": f"MAUVE, {row['decoding']} decoding"})
    dataset = {"name": source, "type": KNOWN_DATASETS.get(source, source)}
    return {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}


def _description(run: RunContents, model: str) -> str:
    base = run.setting[1]
    method, alpha = run.method(model), alpha_of(model)
    named = f"{method} in the paper's words" if method in PAPER else method
    if model == "reference":
        return f"The frozen reference of a CPO run: {base}, trained further by next-token loss."
    if model == "mle":
        kind = "parallel scheduled sampling (PSS)" if method == "PSS" else "next-token loss (MLE)"
        return (
            f"The baseline of a CPO run: {base}, continued from the run's reference by {kind} for as many steps as CPO."
        )
    if model == "cpo":
        loss = (run.config.get("objective") or {}).get("loss", DEFAULT_LOSS)
        by = "Contrastive Preference Optimization" if loss == DEFAULT_LOSS else f"{LOSS_NAMES.get(loss, loss)}"
        return (
            f"{base}, continued from the run's reference by {by} ({named}): trained to prefer the truth over negatives made by "
            "machine, by more than the reference does. No human labels were used."
        )
    if alpha is not None:
        return (
            f"The average of two models' weights: {alpha:g} times the continued-MLE model plus {1 - alpha:g} times the CPO "
            f"model ({named}) of one run, both continued from one reference. Base: {base}."
        )
    if (number := round_of(f"models/{model}")) is not None:
        return (
            f"The policy after round {number} of a CPO run ({run.method('cpo')}): {base}, continued from the policy of the "
            "round before, or in round 1 from the run's reference. The result of the run is its model `cpo`."
        )
    return f"A model of the run {run.label}. Base: {base}."


def _training(run: RunContents, model: str) -> Iterator[str]:
    config = run.config
    if not config:
        yield "- The run directory holds no configuration."
        return
    yield f"- Reference: {_training_settings(config.get('reference') or {})}"
    if (adapter := describe_adapter(config)) is not None:
        yield adapter
    if model != "reference":
        for part in ["cpo", "mle"] if model.startswith("merged-") else [model]:
            yield f"- {part.upper()}: {_training_settings(_settings_of(run, part))}{_in_rounds(run, part)}"
        comparison = compare_trainings(run)
        if comparison is not None:
            yield f"- {comparison['sentence']}"
    if model == "cpo" or model.startswith("merged-"):
        objective = config.get("objective") or {}
        kinds = describe_negatives(config)
        what = f"Negatives per prompt: {kinds or 'not said'} (K = {run.candidates})"
        if answers := ranked_answers(config):
            what = f"At most {answers} answers per prompt that the data ranks" + (f", and {kinds}" if kinds else "")
        yield f"- {what}, {_loss(objective)}; beta {objective.get('beta')}"
    yield from _first_and_last_step(run, model if model in run.curves else "cpo")


def _settings_of(run: RunContents, model: str) -> dict[str, Any]:
    """Return the section `training` with the learning rate and the steps that a model was trained with."""
    training, rate = dict(run.config.get("training") or {}), learning_rate_of(run, model)
    steps = steps_of(run.manifests.get(f"models/{model}", {})) if run.config.get("rounds", 1) > 1 else None
    return training | ({} if rate is None else {"learning_rate": rate}) | ({} if steps is None else {"steps": steps[0]})


def _in_rounds(run: RunContents, model: str) -> str:
    found = rounds_of(run.manifests) if model == "cpo" else None
    return f", in {found['kept']} rounds, each from the policy of the one before" if found else ""


def _loss(objective: Mapping[str, Any]) -> str:
    """Describe the loss: the paper's by its ranks, others by their name and parameters."""
    loss, smoothing = objective.get("loss", DEFAULT_LOSS), objective.get("label_smoothing", 0)
    parts = [LOSS_NAMES.get(loss, loss)]
    if loss == DEFAULT_LOSS:
        parts = ["ranked by similarity to the truth" if objective.get("ranked") else "not ranked"]
    if loss in REWARDED:
        parts += [f"rewards by {objective.get('scores')}", f"temperature {objective.get('score_temperature')}"]
    if loss == "simpo":
        parts.append(f"gamma {objective.get('gamma')}")
    if smoothing:
        parts.append(f"labels smoothed by {smoothing:g}")
    return ", ".join(parts)


def _first_and_last_step(run: RunContents, stage: str) -> Iterator[str]:
    """List the first and the last step of a training."""
    curve = run.curves.get(stage)
    if curve is None or not curve.train:
        return
    first, last = curve.train[0], curve.train[-1]
    of = f"steps {first['step']} and {last['step']} of stage {stage}"
    yield f"- Loss at {of}: {_format_value(first.get('loss'))}, {_format_value(last.get('loss'))}"
    gold_logps = f"{_format_value(first.get('gold_logp'))}, {_format_value(last.get('gold_logp'))}"
    yield f"- Log-prob of the truth there, in nats a response: {gold_logps}"


def _training_settings(section: Mapping[str, Any]) -> str:
    settings = [
        f"{section.get('steps', '?')} steps of {section.get('prompts_per_step', 64)} prompts",
        f"AdamW at {section.get('learning_rate', '?')}",
        f"weight decay {section['weight_decay']}" if "weight_decay" in section else "",
        f"{section['schedule']} schedule" if "schedule" in section else "",
        str(section.get("precision", "")),
    ]
    return ", ".join(setting for setting in settings if setting)


def _data(run: RunContents) -> Iterator[str]:
    data = run.config.get("data") or {}
    summary = run.manifests.get("data", {}).get("summary") or {}
    path = data.get("path")
    where = f" (`{Path(str(path)).name}`)" if path else ""
    yield f"- Source: {run.setting[0]}{where}, split by the content of the prompt: no prompt is on two sides"
    for split in ("train", "validation", "test"):
        rows = summary.get(f"{split}_rows", data.get(f"{split}_rows"))
        if rows is not None:
            yield f"- {split.capitalize()} rows: {rows:,}"
    cut = {name: summary[name] for name in ("truncated_prompts", "truncated_responses") if summary.get(name)}
    if cut:
        yield "- Cut to the length limits: " + ", ".join(
            f"{count:,} {name.split('_')[1]}" for name, count in cut.items()
        )
    if summary.get("responses_without_eos"):
        yield f"- Responses without EOS, because their text goes on: {summary['responses_without_eos']:,}"


def _results(rows: Sequence[TableRow]) -> Iterator[str]:
    if not rows:
        yield "This model was not evaluated."
        return
    yield "| decoding | win rate [95%] | points vs continued MLE | judge | MAUVE | mean words |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        rate = f"{row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if row["win_rate"] is not None else "-"
        mauve = "-" if row["mauve"] is None else f"{row['mauve']:.3f}"
        length = "-" if row["mean_length"] is None else f"{row['mean_length']:.1f}"
        yield f"| {row['decoding']} | {rate} | {_points(row)} | {row['judge'] or '-'} | {mauve} | {length} |"
    yield ""
    yield "Win rates are against the ground truth, ties as half. Differences are paired on the same prompts; p-values are"
    yield "adjusted (Holm) for the models compared; n.s.: not significant at 0.05."


def _points(row: TableRow) -> str:
    difference = row["difference_to_mle"]
    if difference is None:
        return "baseline" if row["is_baseline"] else "-"
    low, high = signed(100 * difference["low"]), signed(100 * difference["high"])
    strength = format_p(difference["p_adjusted"]) if difference["significant"] else "n.s."
    return f"{signed(100 * difference['value'])} [{low}, {high}], {strength}"


def _limits(run: RunContents, rows: Sequence[TableRow]) -> Iterator[str]:
    judged = {row["judge"] for row in rows if row["judge"]}
    yield "- It was trained to imitate and prefer the answers of one data set. It was not trained to be safe or true."
    if judged & LOCAL_JUDGES:
        yield (
            "- Its judge was local and looks at the ground truth: these win rates test the path and compare models of one "
            "run; they say nothing about quality beyond the task."
        )
    elif judged:
        yield "- Its judge was a language model, with a language model's biases (length, order, style)."
    if run.setting[0] == "synthetic":
        yield "- Its data is a synthetic task: it is of no use beyond it."
    if any(row["win_rate"] is not None for row in rows):
        count = max(row["wins"] + row["ties"] + row["losses"] for row in rows)
        yield f"- {count:,} comparisons settle a win rate to about {98 / count**0.5:.1f} points either way. One seed."


def _use(run: RunContents, model: str) -> str:
    template = (run.config.get("data") or {}).get("template")
    prompt_format = f" Prompts had the form `{template!r}`." if template else ""
    imports, load = loading_code(run.config, model)
    return (
        f"```python\n{imports}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("PATH")\nmodel = {load}\n'
        'tokens = tokenizer("PROMPT", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**tokens, max_new_tokens=64)[0]))\n```\n\n"
        f"Prompt and answer were tokenized apart, and a whole answer ends with EOS.{prompt_format}"
    )


def _configuration(run: RunContents) -> Iterator[str]:
    packages = run.environment.get("packages") or {}
    versions = {"cpo_ray": run.environment.get("cpo_ray"), **packages}
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if installed:
        yield f"Made with {installed}."
    if run.environment.get("git_revision"):
        yield f"Revision of cpo_ray: `{run.environment['git_revision']}`."
    if not run.config:
        yield "The run directory holds no config.json."
        return
    yield f"Again: save the text below as `config.yaml`, then `{reproduce_command(run.config.get('name', 'run'))}`."
    yield f"\n<details><summary>config.yaml</summary>\n\n```yaml\n{dump_config(run.config)}```\n\n</details>"


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not measured"
