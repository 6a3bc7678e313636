"""Statistics of the candidates, per kind, from the finished shards: `stats.json` and the stage's summary.

Each key is documented in docs/sampling.md.
"""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cpo_ray.config import KindDecoding
from cpo_ray.sampling.units import KindWork

MANY_EQUAL = 0.2
"""The user is warned if a larger share of the negatives of an autoregressive kind equals the gold."""
MANY_REDRAWS = 0.5
"""The user is warned if a larger share of the draws of a kind was thrown away, if a draw costs GPU time or money."""
REDRAWS = b"redraws"  # key in the Parquet metadata of a shard: JSON, {kind: draws thrown away}
EOS = b"eos"  # key in the Parquet metadata of a shard: the token that ends a candidate
LENGTH_BINS = 20
SIMILARITY_BINS = 40
QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}

Stats = dict[str, dict[str, Any]]
Numbers = npt.NDArray[np.float64]


@dataclass
class DrawCounts:
    """The work for several units, summed by kind."""

    redraws: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, works: Iterable[KindWork]) -> None:
        """Add the work of one unit."""
        for work in works:
            self.redraws[work["kind"]] += work["redraws"]
            self.tokens[work["kind"]] += work["tokens"]
            self.seconds[work["kind"]] += work["seconds"]

    @property
    def speeds(self) -> dict[str, float]:
        """Tokens per second of one actor, draws thrown away included, for the kinds that took any time."""
        return {kind: self.tokens[kind] / seconds for kind, seconds in self.seconds.items() if seconds > 0}


def with_metadata(shard: pa.Table, redraws: Mapping[str, int], eos: int) -> pa.Table:
    """The shard with its redraws, so the counts survive a restart, and the EOS of its candidates in its metadata."""
    return shard.replace_schema_metadata({REDRAWS: json.dumps(dict(sorted(redraws.items()))), EOS: str(eos)})


def eos_of(shard: pa.Table) -> int | None:
    """The EOS of a shard's candidates; None for an empty shard of an older version.

    Shards of older versions do not name it, but all their golds end with it.
    """
    named = (shard.schema.metadata or {}).get(EOS)
    if named is not None:
        return int(named)
    return int(shard["candidate_ids"][0].as_py()[0][-1]) if len(shard) else None


def count_candidates(shards: Iterable[pa.Table], speeds: Mapping[str, float] | None = None) -> Stats:
    """Count finished shards (GROUP_SCHEMA), one at a time. speeds: tokens per second by kind, if measured.

    Candidates are compared by tokens. A duplicate equals an earlier negative of its group, but not the gold.
    """
    kinds: defaultdict[str, _KindCounts] = defaultdict(_KindCounts)
    for shard in shards:
        _count_shard(shard, kinds)
    longest = max((int(lengths.max()) for kind in kinds.values() for lengths in kind.lengths), default=0)
    return {name: _describe(kind, longest, (speeds or {}).get(name)) for name, kind in kinds.items()}


def warnings(
    stats: Stats, sampled: Mapping[str, KindDecoding], left_out: dict[str, int], truncated_prompts: int
) -> list[str]:
    """Warnings about the candidates, as sentences. sampled: the autoregressive kinds."""
    lines = [f"{rows} rows were left out: {reason}" for reason, rows in left_out.items()]
    if truncated_prompts:
        lines.append(f"{truncated_prompts} prompts lost their first tokens: they exceed the reference's context")
    lines += [
        f"{share:.0%} of the {kind} negatives equal the gold and will be masked: the reference knows its "
        f"training prompts by heart. Train it for fewer steps or {_remedy(decoding)}."
        for kind, decoding in sampled.items()
        if (share := equal_share(stats, kind)) > MANY_EQUAL
    ]
    lines += [
        f"{stats[kind]['redraw_rate']:.0%} of the draws of {kind} negatives repeated the gold or another candidate and "
        "were drawn again: most of the work was for nothing. Ask for fewer of them or lower sampling.redraws."
        for kind in (*sampled, "unhelpful")
        if kind in stats and stats[kind]["redraw_rate"] > MANY_REDRAWS
    ]
    return lines


def equal_share(stats: Stats, kind: str) -> float:
    """Share of a kind's candidates that equal the gold; 0 if there are none of the kind."""
    return stats[kind]["equal_to_gold"] / stats[kind]["count"] if kind in stats else 0.0


def _remedy(decoding: KindDecoding) -> str:
    return "use a kind with a temperature" if decoding.is_greedy else "sample at a higher temperature"


@dataclass
class _KindCounts:
    """Values of one kind so far: one array per shard, one number per candidate."""

    lengths: list[Numbers] = field(default_factory=list)
    ratios: list[Numbers] = field(default_factory=list)
    similarities: list[Numbers] = field(default_factory=list)
    logps: list[Numbers] = field(default_factory=list)
    equal_to_gold: int = 0
    duplicates: int = 0
    without_eos: int = 0
    redraws: int = 0


def _count_shard(shard: pa.Table, kinds: defaultdict[str, _KindCounts]) -> None:
    if not len(shard):
        return
    names = _flat(shard, "candidate_kind").to_numpy(zero_copy_only=False)
    sizes = pc.list_value_length(shard["candidate_kind"]).to_numpy()
    gold = np.repeat(np.cumsum(sizes) - sizes, sizes)  # each candidate's index of its gold
    candidates = _flat(shard, "candidate_ids")
    lengths = pc.list_value_length(candidates).to_numpy(zero_copy_only=False).astype(np.float64)
    similarities, logps = (_flat(shard, name).to_numpy(zero_copy_only=False) for name in ("similarity", "ref_logps"))
    for name in dict.fromkeys(names):
        mask, kind = names == name, kinds[name]
        kind.lengths.append(lengths[mask])
        kind.ratios.append(lengths[mask] / lengths[gold[mask]])
        kind.similarities.append(similarities[mask].astype(np.float64))
        kind.logps.append(logps[mask])
    _count_equal(_tokens(candidates), names, gold, eos_of(shard), kinds)
    for name, redraws in json.loads((shard.schema.metadata or {}).get(REDRAWS, b"{}")).items():
        kinds[name].redraws += redraws


def _count_equal(
    tokens: Sequence[npt.NDArray[np.int32]],
    names: Iterable[str],
    gold: Iterable[int],
    eos: int | None,
    kinds: dict[str, _KindCounts],
) -> None:
    """Count the negatives that equal the gold or an earlier negative of their group, and the candidates without EOS."""
    seen: set[bytes] = set()
    for index, (name, first) in enumerate(zip(names, gold, strict=True)):
        kinds[name].without_eos += int(tokens[index][-1] != eos)
        if index == first:
            seen = set()
            continue
        content = tokens[index].tobytes()
        if content == tokens[first].tobytes():
            kinds[name].equal_to_gold += 1
        elif content in seen:
            kinds[name].duplicates += 1
        seen.add(content)


def _describe(kind: _KindCounts, longest: int, speed: float | None) -> dict[str, Any]:
    lengths, similarities, logps = map(np.concatenate, (kind.lengths, kind.similarities, kind.logps))
    count = len(lengths)
    return {
        "count": count,
        "tokens": int(lengths.sum()),
        "mean_tokens": float(lengths.mean()),
        "mean_similarity": float(similarities.mean()),
        "mean_ref_logp": float(logps.mean()),
        "equal_to_gold": kind.equal_to_gold,
        "duplicates": kind.duplicates,
        "redraws": kind.redraws,
        "without_eos": kind.without_eos,
        "equal_to_gold_rate": kind.equal_to_gold / count,
        "duplicate_rate": kind.duplicates / count,
        "without_eos_rate": kind.without_eos / count,
        "redraw_rate": kind.redraws / (count + kind.redraws),
        "tokens_per_second": None if speed is None else round(speed, 1),
        "length": _spread(lengths) | {"histogram": _histogram(lengths, 0, longest, min(LENGTH_BINS, longest))},
        "length_ratio": _spread(np.concatenate(kind.ratios)),
        "similarity": _spread(similarities) | {"histogram": _histogram(similarities, -1, 1, SIMILARITY_BINS)},
        "ref_logp_per_token": _spread(logps / lengths),
    }


def _spread(values: Numbers) -> dict[str, Any]:
    at = np.quantile(values, list(QUANTILES.values()))
    return {name: round(float(value), 4) for name, value in zip(QUANTILES, at, strict=True)} | {
        "mean": round(float(values.mean()), 4)
    }


def _histogram(values: Numbers, low: float, high: float, bins: int) -> dict[str, Any]:
    """`counts[i]` values lie in [low + i * w, low + (i + 1) * w), w = (high - low) / bins. The last bin includes `high`."""
    counts, _ = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
    return {"low": low, "high": high, "counts": counts.tolist()}


def _flat(shard: pa.Table, column: str) -> pa.Array:
    """The elements of a list column, flattened."""
    return shard[column].combine_chunks().flatten()


def _tokens(candidates: pa.Array) -> list[npt.NDArray[np.int32]]:
    offsets = candidates.offsets.to_numpy()
    values = candidates.values.to_numpy(zero_copy_only=False)
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]
