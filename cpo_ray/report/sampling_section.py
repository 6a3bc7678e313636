"""The sampled candidates, as HTML: all statistics of `stats.json` per kind of candidate, and example groups."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cpo_ray.report.markup import DASH, Cell, format_number, grid, missing_notice

TITLES = {  # key of stats.json -> heading and format; other numbers follow under their key
    "count": ("candidates", ",.0f"),
    "mean_tokens": ("mean tokens", ".1f"),
    "mean_similarity": ("mean similarity", ".3f"),
    "equal_to_gold": ("equal to gold", ",.0f"),
    "duplicates": ("duplicates", ",.0f"),
    "redraws": ("drawn again", ",.0f"),
    "without_eos": ("without EOS", ",.0f"),
    "mean_ref_logp": ("mean reference log-prob", ".2f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
}
SPREADS = {  # key of a distribution -> heading
    "length": "tokens",
    "length_ratio": "tokens, gold = 1",
    "similarity": "similarity",
    "ref_logp_per_token": "reference log-prob a token",
}
SHARES = {"equal_to_gold", "duplicates", "without_eos"}  # shown with their share of the candidates
NEGATIVES_ONLY = {"equal_to_gold", "duplicates"}  # not shown for the gold
HIDDEN = {
    "tokens",
    "equal_to_gold_rate",
    "duplicate_rate",
    "without_eos_rate",
    "redraw_rate",
}  # redundant with other columns
GOLD = "gold"


def render_sampling(runs: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Render one table of statistics, and the first groups of each run. groups: run label -> groups."""
    if len(runs) == 1:
        return _statistics(runs) + _examples(groups[runs[0]["label"]], "")
    folded = [
        f"<details><summary>Example groups of {escape(label)}</summary>{_examples(found, f' of {label}')}</details>"
        for label, found in groups.items()
    ]
    return _statistics(runs) + "".join(folded)


def _statistics(runs: Sequence[Mapping[str, Any]]) -> str:
    flat = {
        (f"{run['label']}: {kind}" if len(runs) > 1 else kind, kind): found
        for run in runs
        for kind, found in run["sampling"].items()
        if isinstance(found, Mapping)
    }
    if not flat:
        return missing_notice("No sampling statistics: groups/train/stats.json is not there.")
    present = {key for found in flat.values() for key, value in found.items() if isinstance(value, int | float)}
    keys = [key for key in TITLES if key in present] + sorted(present - TITLES.keys() - HIDDEN)
    heads = ["kind", *(TITLES[key][0] if key in TITLES else key.replace("_", " ") for key in keys)]
    rows: list[list[Cell]] = [
        [escape(name), *(_cell(kind, key, found) for key in keys)] for (name, kind), found in flat.items()
    ]
    return grid(heads, rows, "Candidates of the training groups, by kind") + _spreads(flat) + NOTE


def _spreads(flat: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Render median and 5% to 95% range of every distribution."""
    present = {
        key
        for found in flat.values()
        for key, value in found.items()
        if isinstance(value, Mapping) and "median" in value
    }
    if not present:
        return ""
    keys = [key for key in SPREADS if key in present] + sorted(present - SPREADS.keys())
    heads = ["median [5%, 95%]", *(SPREADS.get(key, key.replace("_", " ")) for key in keys)]
    rows: list[list[Cell]] = [
        [escape(name), *(_spread(found.get(key)) for key in keys)] for (name, _), found in flat.items()
    ]
    return grid(heads, rows, "Distributions over the candidates, by kind")


def _spread(found: Mapping[str, Any] | None) -> str:
    if not found:
        return DASH
    median, low, high = (format_number(found.get(key), ".3g") for key in ("median", "p5", "p95"))
    return f"{median} <small>[{low}, {high}]</small>"


NOTE = """<p class="note">Candidates of the training groups. Similarity: cosine to the gold's embedding. A candidate
equal to the gold carries no signal and is masked out of the loss; one without EOS was cut. Log-probs in nats, summed over
the continuation.</p>"""


def _cell(kind: str, key: str, found: Mapping[str, Any]) -> str:
    value = found.get(key)
    if not isinstance(value, int | float) or (kind == GOLD and key in NEGATIVES_ONLY):
        return DASH
    form = (
        TITLES[key][1] if key in TITLES else ",.0f" if isinstance(value, int) else ".3f" if abs(value) < 10 else ",.1f"
    )
    share = f" <small>({value / found['count']:.1%})</small>" if key in SHARES and value and found.get("count") else ""
    return format_number(value, form) + share


def _examples(groups: Sequence[Mapping[str, Any]], of: str) -> str:
    if not groups:
        return missing_notice("No candidate groups: groups/train holds no Parquet file.")
    title = "" if of else "<h3>Example groups</h3>"
    parts = [f"{title}<p>The first groups of the first shard, not chosen. Rank 0 is the gold.</p>"]
    for count, group in enumerate(groups, 1):
        order = sorted(range(len(group["rank"])), key=group["rank"].__getitem__)
        rows: list[list[Cell]] = [
            [
                f'<span class="kind">{escape(group["candidate_kind"][index])}</span>',
                (escape(group["candidate_text"][index]) or "<i>empty</i>", "text"),
                str(group["rank"][index]),
                format_number(group["similarity"][index], ".3f"),
                format_number(group["ref_logps"][index], ".2f"),
            ]
            for index in order
        ]
        heads = ["kind", "continuation", "rank", "similarity", "reference log-prob"]
        table = grid(heads, rows, f"Candidates of example group {count}{of}, by rank")
        prompt = f'<pre class="prompt">{escape(group["prompt"])}</pre>'
        parts.append(f'<article class="group"><h4>Prompt</h4>{prompt}{table}</article>')
    return "".join(parts)
