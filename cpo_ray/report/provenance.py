"""Provenance of the results, as HTML: stages, versions, the exact configuration, and the command that reproduces the run."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import yaml

from cpo_ray.report.markup import DASH, flatten, format_duration, format_number, format_time, grid, missing_notice

RunFacts = Mapping[str, Any]


def render_runs(runs: Sequence[RunFacts]) -> str:
    """Render one run; for several, first their differences, then each run in a collapsed block."""
    if len(runs) == 1:
        return _run(runs[0], "")
    folded = [
        f'<details class="run"><summary>{escape(run["label"])}</summary>{_run(run, " of " + run["label"])}</details>'
        for run in runs
    ]
    return _differences(runs) + "".join(folded)


def _differences(runs: Sequence[RunFacts]) -> str:
    """Render the configuration keys and versions that differ between the runs."""
    flats = [
        flatten({**run["config"], "versions": {k: v for k, v in run["environment"].items() if k != "seed"}})
        for run in runs
    ]
    keys = sorted({key for flat in flats for key in flat} - {"name"})
    differing = [key for key in keys if len({str(flat.get(key)) for flat in flats}) > 1]
    if not differing:
        return "<p>The runs have the same configuration and the same versions.</p>"
    rows = [[f"<code>{escape(key)}</code>", *(_format_setting(flat, key) for flat in flats)] for key in differing]
    heads = ["key", *(run["label"] for run in runs)]
    table = grid(heads, rows, "Configuration keys and versions that differ between the runs")
    return f'<h3>What differs</h3><div class="differences">{table}</div>'


def _format_setting(flat: Mapping[str, Any], key: str) -> str:
    return escape(str(flat[key])) if key in flat else "<small>not set</small>"


def _run(run: RunFacts, of: str) -> str:
    stages = [
        [
            escape(item["name"]),
            format_duration(item["seconds"]),
            format_number(item["rows"], ",.0f"),
            format_time(item["created"]),
        ]
        for item in run["stages"]
    ]
    heads = ["artifact", "took", "rows", "finished, UTC"]
    done = grid(heads, stages, f"Artifacts{of}, oldest first") if stages else missing_notice("No stage has finished.")
    facts = [
        [escape(key), DASH if value is None else escape(str(value))]
        for key, value in flatten(run["environment"]).items()
    ]
    environment = (
        grid(["what", "value"], facts, f"Versions and hardware{of}")
        if facts
        else missing_notice("environment.json is not there.")
    )
    parts = [f'<div class="columns"><div><h3>Stages</h3>{done}</div><div><h3>Environment</h3>{environment}</div></div>']
    parts.append("<h3>Configuration and command</h3>")
    if not run["config"]:
        return "".join(
            [*parts, missing_notice("config.json is not there, so the command to reproduce this run is not known.")]
        )
    revision = run["environment"].get("git_revision")
    at = f"At revision <code>{escape(str(revision))}</code>: save" if revision else "Save"
    parts.append(f"<p>{at} the text below as <code>config.yaml</code>, then</p><pre>{escape(run['command'])}</pre>")
    text = dump_config(run["config"])
    parts.append(f"<details><summary>The exact configuration, resolved</summary><pre>{escape(text)}</pre></details>")
    return "".join(parts)


def reproduce_command(name: str) -> str:
    """Return the command that reproduces a run from its configuration, saved as config.yaml."""
    return f"cpo-ray run config.yaml --run-dir runs/{name}-again"


def dump_config(config: Mapping[str, Any]) -> str:
    """Format a resolved configuration as YAML."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100)
