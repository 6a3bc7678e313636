"""What was sampled, per kind, counted from the finished shards: `stats.json` and the stage's summary."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

MANY_EQUAL = 0.2
"""Share of autoregressive negatives equal to the gold above which the user is warned."""

Stats = dict[str, dict[str, Any]]


def count_candidates(shards: Iterable[pa.Table]) -> Stats:
    """Per kind: `count`, `mean_tokens`, `mean_similarity`, `mean_ref_logp`, `equal_to_gold`, `duplicates`.

    shards: tables of GROUP_SCHEMA. Candidates are compared by tokens; a duplicate equals an earlier negative of its
    group and not the gold.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    sums: defaultdict[str, Counter[str]] = defaultdict(Counter)
    columns = ["candidate_kind", "candidate_ids", "similarity", "ref_logps"]
    for shard in shards:
        for group in shard.select(columns).to_pylist():
            _count_group(group, counts, sums)
    return {
        kind: {
            "count": count["count"],
            "tokens": count["tokens"],
            "mean_tokens": count["tokens"] / count["count"],
            "mean_similarity": sums[kind]["similarity"] / count["count"],
            "mean_ref_logp": sums[kind]["ref_logp"] / count["count"],
            "equal_to_gold": count["equal_to_gold"],
            "duplicates": count["duplicates"],
        }
        for kind, count in counts.items()
    }


def warnings(stats: Stats, left_out: dict[str, int], truncated_prompts: int) -> list[str]:
    """What the user should know about the candidates, in sentences."""
    lines = [f"{rows} rows were left out: {reason}" for reason, rows in left_out.items()]
    if truncated_prompts:
        lines.append(f"{truncated_prompts} prompts lost their first tokens: they exceed the reference's context")
    share = equal_share(stats, "autoregressive")
    if share > MANY_EQUAL:
        lines.append(
            f"{share:.0%} of the autoregressive negatives equal the gold and will be masked: the reference knows its "
            "training prompts by heart. Train it for fewer steps or sample at a higher temperature."
        )
    return lines


def equal_share(stats: Stats, kind: str) -> float:
    """Share of a kind's candidates that equal the gold; 0 where there are none of the kind."""
    return stats[kind]["equal_to_gold"] / stats[kind]["count"] if kind in stats else 0.0


def _count_group(
    group: dict[str, Any], counts: defaultdict[str, Counter[str]], sums: defaultdict[str, Counter[str]]
) -> None:
    seen: set[tuple[int, ...]] = set()
    gold = tuple(group["candidate_ids"][0])
    for k, kind in enumerate(group["candidate_kind"]):
        tokens = tuple(group["candidate_ids"][k])
        count = counts[kind]
        count["count"] += 1
        count["tokens"] += len(tokens)
        sums[kind]["similarity"] += group["similarity"][k]
        sums[kind]["ref_logp"] += group["ref_logps"][k]
        if k and tokens == gold:
            count["equal_to_gold"] += 1
        elif k and tokens in seen:
            count["duplicates"] += 1
        seen.add(tokens)
