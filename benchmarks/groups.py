"""Groups like those of the sampling stage, K = 12 MixN: from Dolly's texts if available, otherwise random tokens."""

import math
import random
from pathlib import Path

from cpo_ray.records import Tokens

SHARED = Path(__file__).parents[2] / "shared" / "data"
VOCABULARY, EOS, CONTEXT = 50_257, 50_256, 1024
K, PROMPTS, BATCH, MEANFIELD, TRUNCATION = 12, 4, 3, 5, 3  # MixN: the gold and 3 BN, 5 MN, 3 TN

Batch = tuple[list[Tokens], list[list[Tokens]]]  # prompts, and the candidates of each, the gold first


def make_batches(number: int, seed: int = 17) -> tuple[list[Batch], str]:
    """`number` batches of 4 prompts with 12 candidates each, and the source of their lengths."""
    draw = random.Random(seed)
    pairs, source = token_pairs(number * PROMPTS, draw)
    return grouped(pairs, PROMPTS, draw), source


def grouped(pairs: list[tuple[Tokens, Tokens]], prompts_per_batch: int, draw: random.Random) -> list[Batch]:
    """Add negatives to each pair and split into batches."""
    groups = [[gold, *negatives(gold, [other for _, other in pairs], draw)] for _, gold in pairs]
    cut = [slice(start, start + prompts_per_batch) for start in range(0, len(pairs), prompts_per_batch)]
    return [([prompt for prompt, _ in pairs[part]], groups[part]) for part in cut]


def negatives(gold: Tokens, golds: list[Tokens], draw: random.Random) -> list[Tokens]:
    """3 BN, 5 MN and 3 TN. A resampled token always differs from the gold's, so shared prefixes are as short as possible."""
    others = draw.sample([other for other in golds if other != gold], BATCH)
    edits = [_edit(gold, draw) for _ in range(MEANFIELD)]
    cuts = [[*gold[: draw.randint(1, len(gold) - 2)], EOS] for _ in range(TRUNCATION)]
    return [*others, *edits, *cuts]


def token_pairs(count: int, draw: random.Random) -> tuple[list[tuple[Tokens, Tokens]], str]:
    """(prompt, response with EOS) of at most 1024 tokens together; a response has at least three."""
    dolly = SHARED / "dolly" / "databricks-dolly-15k.jsonl"
    if not dolly.exists():
        return synthetic_pairs(count, draw), "synthetic lengths"
    from cpo_ray.data.dolly import read_dolly
    from cpo_ray.data.rows import InstructionRow
    from cpo_ray.data.template import apply_template
    from cpo_ray.data.tokenization import encode, load_tokenizer

    tokenizer = load_tokenizer(str(SHARED / "tokenizers"))
    rows = draw.sample([row for row in read_dolly(dolly) if isinstance(row, InstructionRow)], 2 * count + 8)
    prompts = [apply_template("{context}\n{instruction}\n", row.instruction, row.context) for row in rows]
    responses = encode(tokenizer, [row.response for row in rows], special=False)
    pairs = [
        (p, [*r, EOS]) for p, r in zip(encode(tokenizer, prompts, special=True), responses, strict=True) if len(r) > 1
    ]
    return [(p, r) for p, r in pairs if len(p) + len(r) <= CONTEXT][:count], "Dolly's lengths"


def synthetic_pairs(count: int, draw: random.Random) -> list[tuple[Tokens, Tokens]]:
    """Random tokens with lengths like Dolly's under GPT-2's BPE: prompts with median 16 and mean 93, responses 45 and 81."""
    pairs = []
    while len(pairs) < count:
        prompt, response = (
            round(draw.lognormvariate(math.log(16), 1.88)),
            round(draw.lognormvariate(math.log(45), 1.08)),
        )
        if prompt > 0 and response > 1 and prompt + response < CONTEXT:
            pairs.append((_random(draw, prompt), [*_random(draw, response), EOS]))
    return pairs


def _edit(gold: Tokens, draw: random.Random) -> Tokens:
    """The gold with 15% of its tokens replaced, never EOS."""
    edited = list(gold)
    for position in draw.sample(range(len(gold) - 1), max(1, round(0.15 * (len(gold) - 1)))):
        edited[position] = (gold[position] + draw.randrange(1, EOS)) % EOS
    return edited


def _random(draw: random.Random, length: int) -> Tokens:
    return [draw.randrange(EOS) for _ in range(length)]
