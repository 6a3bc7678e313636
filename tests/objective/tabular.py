"""A small language whose every sequence is enumerated, so that expectations over candidates are sums: for docs/theory.md.

A sequence is one or two tokens of "abc", then the end: 12 sequences. A policy is one logit per sequence.
"""

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from cpo_ray.objective.losses import cpo_loss, joint_loss

TOKENS = "abc"
SEQUENCES = [*TOKENS, *map("".join, itertools.product(TOKENS, repeat=2))]
INDEX = {sequence: i for i, sequence in enumerate(SEQUENCES)}

FIRST = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)  # of the reference
NEXT = torch.tensor(  # after a, b, c: a second token, or the end
    [[0.2, 0.3, 0.2, 0.3], [0.5, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.6]], dtype=torch.float64
)
DATA_FIRST = torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)
DATA_NEXT = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.3, 0.3, 0.3, 0.1], [0.2, 0.1, 0.3, 0.4]], dtype=torch.float64)

Outcome = tuple[float, tuple[int, ...]]  # probability; gold and negatives, by their index
Draw = Callable[[int], Tensor]  # gold -> distribution of a negative (12,)


def sequence_probabilities(first: Tensor, following: Tensor) -> Tensor:
    """(12,) float64: of each sequence, from its tokens' conditional probabilities."""
    chances = []
    for sequence in SEQUENCES:
        a = TOKENS.index(sequence[0])
        last = TOKENS.index(sequence[1]) if len(sequence) == 2 else 3
        chances.append(first[a] * following[a, last])
    return torch.stack(chances)


def tempered(temperature: float) -> Tensor:
    """(12,) samples of the reference at a temperature, which is applied to each token, as an engine does."""
    return sequence_probabilities(
        *(torch.softmax(table.log() / temperature, dim=-1) for table in (FIRST, NEXT)),
    )


REFERENCE = sequence_probabilities(FIRST, NEXT)
DATA = sequence_probabilities(DATA_FIRST, DATA_NEXT)
GREEDY = INDEX["ab"]  # the likeliest first token, and the likeliest after it
LENGTHS = torch.tensor([len(sequence) + 1.0 for sequence in SEQUENCES], dtype=torch.float64)  # tokens, with the end


def independent(*negatives: Tensor, data: Tensor = DATA) -> list[Outcome]:
    """Every gold with every tuple of negatives, one of each distribution (12,)."""
    return outcomes(data, *((lambda gold, q=q: q) for q in negatives))


def outcomes(data: Tensor, *draws: Draw) -> list[Outcome]:
    """Every gold with every tuple of negatives, each drawn given the gold."""
    found: list[Outcome] = []
    for gold in range(len(SEQUENCES)):
        tables = [draw(gold) for draw in draws]
        supports = [torch.nonzero(table).flatten().tolist() for table in tables]
        for negatives in itertools.product(*supports):
            chance = data[gold].item()
            for table, negative in zip(tables, negatives, strict=True):
                chance *= table[negative].item()
            if chance:
                found.append((chance, (gold, *negatives)))
    return found


def greedy(gold: int) -> Tensor:
    """The reference's greedy sequence, whatever the gold."""
    return torch.nn.functional.one_hot(torch.tensor(GREEDY), len(SEQUENCES)).double()


def meanfield(gold: int) -> Tensor:
    """One token of the gold, drawn from the reference after the gold's prefix, never the end; drawn again if it is the same."""
    y, chances = SEQUENCES[gold], torch.zeros(len(SEQUENCES), dtype=torch.float64)
    for t in range(len(y)):
        table = FIRST if t == 0 else NEXT[TOKENS.index(y[0]), :3]
        for token, chance in zip(TOKENS, normalised(table), strict=True):
            if token != y[t]:
                chances[INDEX[y[:t] + token + y[t + 1 :]]] += chance / len(y)
    return normalised(chances)


def truncation(gold: int) -> Tensor:
    """The first token of a gold of two. A gold of one token has no truncation: it is left out."""
    chances = torch.zeros(len(SEQUENCES), dtype=torch.float64)
    if len(SEQUENCES[gold]) == 2:
        chances[INDEX[SEQUENCES[gold][0]]] = 1.0
    return chances


def by_similarity(candidates: tuple[int, ...]) -> list[int]:
    """Ranks by the share of tokens that equal the gold's at their positions; the gold first, ties by candidate index."""
    gold = SEQUENCES[candidates[0]]

    def similarity(k: int) -> float:
        y = SEQUENCES[candidates[k]]
        return sum(a == b for a, b in zip(y, gold, strict=False)) / max(len(y), len(gold))

    order = [0, *sorted(range(1, len(candidates)), key=similarity, reverse=True)]
    return [order.index(k) for k in range(len(candidates))]


def as_drawn(candidates: tuple[int, ...]) -> list[int]:
    """Ranks in the order in which the negatives were drawn: they say nothing about the negatives."""
    return list(range(len(candidates)))


def redrawn(q: Tensor, negatives: int, data: Tensor = DATA) -> list[Outcome]:
    """Negatives that equal the gold or each other are drawn again, until none does."""
    found: list[Outcome] = []
    for chosen in itertools.permutations(range(len(SEQUENCES)), negatives + 1):
        chance, left = data[chosen[0]].item(), 1 - q[chosen[0]].item()
        for negative in chosen[1:]:
            chance *= q[negative].item() / left
            left -= q[negative].item()
        found.append((chance, chosen))
    return found


def optimal_policy(
    outcomes: Iterable[Outcome],
    beta: float,
    *,
    reference: Tensor = REFERENCE,
    ranks: Callable[[tuple[int, ...]], list[int]] | None = None,
    masked: bool = False,
    per_token: bool = False,
    alpha: float = 0.0,
    smoothing: float = 0.0,
    iterations: int = 200,
) -> tuple[Tensor, float]:
    """The policy (12,) with the least expected loss, and that loss: `cpo_loss` and `joint_loss`, minimised by LBFGS.

    ranks: of an outcome's candidates, the gold first. masked: a negative that equals the gold is masked. per_token: scores
    per token. alpha: weight of MLE. smoothing: of the labels.
    """
    kept = list(outcomes)
    weights_B = torch.tensor([chance for chance, _ in kept], dtype=torch.float64)
    candidates_BK = torch.tensor([candidates for _, candidates in kept])
    ref_BK = reference.log()[candidates_BK]
    valid_BK = candidates_BK != candidates_BK[:, :1]
    valid_BK[:, 0] = True
    ranks_BK = torch.tensor([ranks(candidates) for _, candidates in kept]) if ranks else None

    def expected_loss(logps: Tensor) -> Tensor:
        policy_BK = logps[candidates_BK]
        lengths_BK = LENGTHS[candidates_BK] if per_token else None
        cpo_B = cpo_loss(policy_BK, ref_BK, beta, ranks_BK, valid_BK if masked else None, lengths_BK, smoothing)
        return (weights_B * joint_loss(cpo_B, policy_BK, ref_BK, mle_weight=alpha)).sum() / weights_B.sum()

    return minimise(expected_loss, reference, iterations)


def minimise(
    expected_loss: Callable[[Tensor], Tensor], start: Tensor = REFERENCE, iterations: int = 200
) -> tuple[Tensor, float]:
    """The policy (12,) with the least loss, and that loss. expected_loss: of the log-probs (12,) of all sequences."""
    logits = start.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=iterations,
        max_eval=4 * iterations,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = expected_loss(logits.log_softmax(0))
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return logits.softmax(0), expected_loss(logits.log_softmax(0)).item()


def normalised(weights: Tensor) -> Tensor:
    """Weights divided by their sum."""
    return weights / weights.sum()


def kl(p: Tensor, q: Tensor) -> float:
    """KL(p || q), nats."""
    return (p * (p / q).log()).sum().item()
