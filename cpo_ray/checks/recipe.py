"""Can this recipe change the policy? The optimum of the loss, for negatives that give it a formula (docs/theory.md)."""

import math

from cpo_ray.config import KindDecoding, RunConfig

LEAST_WAY = 0.5
"""The user is warned if the optimum is a smaller part of the way from the reference to the data (in log-probs)."""
NEAR_TEMPERATURE = 0.1
"""Samples at 1 / temperature closer to 1 than this count as samples of the reference."""
NEAR_TOP_K = 50
"""Samples from at least so many tokens count as samples of the reference."""
NEAR_TOP_P = 0.95
"""Samples from at least this probability count as samples of the reference."""
NO_OPTIMUM = (
    "no answer that the data holds can be one of these negatives (greedy answers and truncations alone): the loss has no "
    "finite optimum, it falls to 0 while the gold's likelihood may fall, too. Add objective.mle_weight (as configs/demo.yaml "
    "does), an autoregressive negative or objective.label_smoothing, or take few steps and watch the validation NLL, see "
    "docs/theory.md"
)
WITHOUT_OPTIMUM = frozenset({"truncation"})
"""Kinds whose negatives the data never holds. Greedy answers are the others."""


def recipe_warnings(config: RunConfig) -> list[str]:
    """What a recipe cannot change, with the reason and a remedy: sentences, none for a recipe whose optimum has no formula."""
    objective = config.objective
    if objective.loss != "cpo":
        return []
    if _has_no_optimum(config):
        return [NO_OPTIMUM]
    if not _samples_the_reference(config) or objective.length_normalised or objective.mle_weight:
        return []
    way, source = way_to_the_data(config), "the reference"
    if count_references(config) > 1:
        source = f"the reference, which the policy becomes {count_references(config) - 1} times,"
    elif config.sampling.refresh_steps is not None:
        source = "the policy, and the reference stays"
    if way >= LEAST_WAY:
        return []
    ranks = ", apart from what the ranks of the negatives add" if objective.ranked and config.candidates > 2 else ""
    return [
        (
            f"negatives come from {source} and objective.beta is {objective.beta:g}: at its optimum this policy is {way:.0%} "
            f"of the way from the reference to the data{ranks}, where MLE goes all of it. Lower objective.beta (1: all of the "
            "way), or take negatives that hold what the data lacks, see docs/theory.md"
        )
    ]


def way_to_the_data(config: RunConfig) -> float:
    """How far the optimum is from the reference, 0, to the data, 1, in log-probs, for negatives sampled at temperature 1.

    From the reference: pi_ref^(1 - 1/beta) p^(1/beta). From the policy, with a fixed reference: the policy that its own
    negatives leave where it is, pi_ref^(beta/(beta+1)) p^(1/(beta+1)). If the policy becomes the reference, each one goes
    1/beta of the way that is left.
    """
    beta, references = config.objective.beta, count_references(config)
    if references > 1:
        return float(1 - max(0.0, 1 - 1 / beta) ** references)
    return 1 / beta if config.sampling.refresh_steps is None else 1 / (beta + 1)


def count_references(config: RunConfig) -> int:
    """How many models are the reference one after another: one per round, or in a stream one per period."""
    sampling = config.sampling
    if not sampling.refresh_reference or sampling.refresh_steps is None:
        return config.rounds
    return math.ceil(config.training.steps / sampling.refresh_steps)


def _has_no_optimum(config: RunConfig) -> bool:
    """Whether nothing in the loss keeps the scores finite."""
    objective, greedy = config.objective, {kind for kind, each in config.sampling.sampled.items() if each.is_greedy}
    return (
        config.sampling.negatives.by_kind.keys() <= greedy | WITHOUT_OPTIMUM
        and not objective.mle_weight
        and not objective.label_smoothing
    )


def _samples_the_reference(config: RunConfig) -> bool:
    """Whether all negatives are samples of a model, about as it is."""
    decodings = config.sampling.sampled
    is_sampled = decodings.keys() == config.sampling.negatives.by_kind.keys() and not config.data.has_answers
    return is_sampled and all(map(_is_near, decodings.values()))


def _is_near(decoding: KindDecoding) -> bool:
    return (
        not decoding.is_greedy
        and abs(1 / decoding.temperature - 1) <= NEAR_TEMPERATURE
        and (decoding.top_k <= 0 or decoding.top_k >= NEAR_TOP_K)
        and decoding.top_p >= NEAR_TOP_P
    )
