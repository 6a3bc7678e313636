"""The formulas of docs/theory.md, against the real losses, minimised over a small language."""

import itertools
import math

import pytest
import torch

from cpo_ray.objective.losses import cpo_loss
from tests.objective.tabular import (
    DATA,
    DATA_FIRST,
    DATA_NEXT,
    FIRST,
    GREEDY,
    INDEX,
    LENGTHS,
    NEXT,
    REFERENCE,
    SEQUENCES,
    as_drawn,
    by_similarity,
    greedy,
    independent,
    kl,
    meanfield,
    normalised,
    optimal_policy,
    outcomes,
    redrawn,
    sequence_probabilities,
    tempered,
    truncation,
)

UNIFORM = torch.full((12,), 1 / 12, dtype=torch.float64)


def assert_same(policy, formula, tolerance=1e-6):
    """Equal in every log-probability."""
    torch.testing.assert_close(policy.log(), formula.log(), rtol=0, atol=tolerance)


def ratio_policy(q, beta, data=DATA, reference=REFERENCE):
    return normalised(reference * (data / q) ** (1 / beta))


@pytest.mark.parametrize(
    ("negatives", "beta", "temperature"), [*itertools.product((1, 2), (1.0, 5.0), (0.7, 1.0, 1.4)), (3, 1.0, 0.7)]
)
def test_independent_negatives_of_any_number(negatives, beta, temperature):
    q = tempered(temperature)
    policy, _ = optimal_policy(independent(*[q] * negatives), beta)
    assert_same(policy, ratio_policy(q, beta))


def test_negatives_of_the_reference_lead_a_part_of_the_way_to_the_data():
    q = tempered(1.0)
    torch.testing.assert_close(q, REFERENCE)
    assert_same(optimal_policy(independent(q), 1.0)[0], DATA)
    assert_same(optimal_policy(independent(q), 5.0)[0], normalised(REFERENCE**0.8 * DATA**0.2))


def test_temperature_at_a_reference_that_equals_the_data():
    """Colder negatives flatten, hotter ones sharpen: p^(1 + (1 - 1/T) / beta) if whole sequences have the temperature."""
    for temperature, beta in itertools.product((0.7, 1.4), (1.0, 5.0)):
        q = normalised(REFERENCE ** (1 / temperature))
        policy, _ = optimal_policy(independent(q, data=REFERENCE), beta)
        assert_same(policy, normalised(REFERENCE ** (1 + (1 - 1 / temperature) / beta)))
    cold, hot = (optimal_policy(independent(tempered(t), data=REFERENCE), 1.0)[0] for t in (0.7, 1.4))
    entropies = [-(policy * policy.log()).sum().item() for policy in (hot, REFERENCE, cold)]
    assert entropies == sorted(entropies)


def test_beta_and_the_reference_only_turn_scores_into_a_policy():
    """The least loss and the scores are the same for every beta and reference, also where no formula exists."""
    groups = outcomes(DATA, meanfield, lambda gold: REFERENCE)
    found = []
    for beta, reference in ((1.0, REFERENCE), (5.0, REFERENCE), (2.0, UNIFORM)):
        policy, loss = optimal_policy(groups, beta, reference=reference, ranks=by_similarity, masked=True)
        scores = beta * (policy / reference).log()
        found.append((loss, scores - scores.mean()))
    for loss, scores in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-9)
        torch.testing.assert_close(scores, found[0][1], rtol=0, atol=1e-5)
    scores, variance = found[0][1], (REFERENCE @ found[0][1].square() - (REFERENCE @ found[0][1]).square()).item()
    far = normalised(REFERENCE * (scores / 20).exp())
    assert kl(far, REFERENCE) == pytest.approx(variance / (2 * 20**2), rel=0.1)


def test_the_first_gradient_is_beta_times_the_difference_of_the_distributions():
    q, k, beta = tempered(0.7), 3, 5.0
    logps = REFERENCE.log().clone().requires_grad_()
    groups = independent(q, q)
    candidates = torch.tensor([c for _, c in groups])
    loss = cpo_loss(logps[candidates], REFERENCE.log()[candidates], beta)
    (torch.tensor([chance for chance, _ in groups], dtype=torch.float64) @ loss).backward()
    torch.testing.assert_close(-logps.grad, beta * (1 - 1 / k) * (DATA - q))


def test_the_fall_of_the_loss_is_at_most_the_divergence():
    for negatives in (1, 2):
        _, loss = optimal_policy(independent(*[REFERENCE] * negatives), 1.0)
        assert 0 < math.log(negatives + 1) - loss < kl(DATA, REFERENCE)


def test_negatives_that_are_drawn_again():
    """K = 2 has a formula; for K = 3 both formulas are near, and nearer the more sequences share the probability."""
    q = REFERENCE
    pair, _ = optimal_policy(redrawn(q, 1), 1.0)
    assert_same(pair, normalised(REFERENCE * DATA / (q * (1 - q))))
    three, _ = optimal_policy(redrawn(q, 2), 1.0)
    gap = (three.log() - DATA.log()).abs().max().item()
    assert 0.1 < gap < 0.2
    even, _ = optimal_policy(redrawn(UNIFORM, 2), 1.0, reference=UNIFORM)
    assert_same(even, DATA)  # where every sequence is as likely, drawing again changes nothing


def test_masked_negatives():
    """Masking a negative that equals the gold changes nothing for K = 2, and next to nothing for K = 3."""
    assert_same(optimal_policy(independent(REFERENCE), 1.0, masked=True)[0], DATA)
    three, _ = optimal_policy(independent(REFERENCE, REFERENCE), 1.0, masked=True)
    assert 1e-3 < (three.log() - DATA.log()).abs().max().item() < 0.1


def test_batch_negatives_reward_what_belongs_to_the_prompt():
    """Negatives are responses to other prompts, of which half ask for REFERENCE: pi_ref * p(y|x) / p(y) at beta 1."""
    marginal = (DATA + REFERENCE) / 2
    assert_same(optimal_policy(independent(marginal, marginal), 1.0)[0], normalised(REFERENCE * DATA / marginal))
    converged, _ = optimal_policy(independent(marginal), 1.0, reference=DATA)
    assert_same(converged, normalised(DATA**2 / marginal))


def test_negatives_of_the_policy_itself():
    """The policy at which negatives of its own leave it where it is: pi_ref^(beta/(beta+1)) p^(1/(beta+1))."""
    for beta in (1.0, 5.0):
        fixed = normalised(REFERENCE ** (beta / (beta + 1)) * DATA ** (1 / (beta + 1)))
        assert_same(optimal_policy(independent(fixed, fixed), beta)[0], fixed)


def test_rounds_approach_the_data():
    """The policy becomes the reference and the source of negatives: after n rounds, 1 - (1 - 1/beta)^n of the way."""
    policy = REFERENCE
    for _ in range(3):
        policy, _ = optimal_policy(independent(policy), 5.0, reference=policy)
    way = 1 - 0.8**3
    assert_same(policy, normalised(REFERENCE ** (1 - way) * DATA**way))


@pytest.mark.parametrize(("draw", "loser"), [(greedy, "ab"), (truncation, "a")])
def test_a_negative_that_the_gold_never_is_has_no_finite_optimum(draw, loser):
    probabilities, losses = [], []
    for iterations in (3, 6, 40):
        policy, loss = optimal_policy(outcomes(DATA, draw), 1.0, masked=True, iterations=iterations)
        probabilities.append(policy[INDEX[loser]].item())
        losses.append(loss)
    assert probabilities == sorted(probabilities, reverse=True)
    assert probabilities[-1] < 1e-6
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-5


def test_a_sequence_that_no_negative_can_be_takes_all():
    """Top-k: the reference's third first token is never sampled, and the data has it."""
    kept = normalised(FIRST * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    policy, _ = optimal_policy(independent(sequence_probabilities(kept, NEXT)), 1.0)
    assert policy[[i for i, y in enumerate(SEQUENCES) if y[0] == "c"]].sum().item() > 0.999


def test_greedy_beside_samples_has_a_finite_optimum():
    policy, _ = optimal_policy(outcomes(DATA, greedy, lambda gold: REFERENCE), 1.0, masked=True)
    others = [i for i in range(12) if i != GREEDY]
    assert policy[GREEDY] < 0.25 * REFERENCE[GREEDY]
    assert_same(normalised(policy[others]), normalised(DATA[others]), tolerance=0.15)


def test_meanfield_pairs_within_one_length():
    """With a reference whose positions are independent, s = log p(y) - sum_t log(r(y_t)) - log(chance that y changes).

    One token is drawn again until it differs, and sequences of different lengths are never compared.
    """
    tokens = normalised(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))

    def draw(gold):
        y, chances = SEQUENCES[gold], torch.zeros(12, dtype=torch.float64)
        for t, (k, token) in itertools.product(range(len(y)), enumerate("abc")):
            if token != y[t]:
                chances[INDEX[y[:t] + token + y[t + 1 :]]] += tokens[k] / len(y)
        return normalised(chances)

    policy, _ = optimal_policy(outcomes(DATA, draw), 1.0)
    reward = []
    for i, y in enumerate(SEQUENCES):
        chosen = [tokens["abc".index(token)].item() for token in y]
        stays = sum(chosen) / len(y)
        reward.append(math.log(DATA[i].item()) - sum(map(math.log, chosen)) - math.log(1 - stays))
    expected = REFERENCE * torch.tensor(reward, dtype=torch.float64).exp()
    for length in (1, 2):
        same = [i for i, y in enumerate(SEQUENCES) if len(y) == length]
        assert_same(normalised(policy[same]), normalised(expected[same]))
        assert policy[same].sum().item() == pytest.approx(REFERENCE[same].sum().item(), abs=0.2)


def test_meanfield_has_a_signal_at_a_reference_that_equals_the_data():
    assert kl(optimal_policy(outcomes(REFERENCE, meanfield), 1.0)[0], REFERENCE) == pytest.approx(0.054, abs=1e-3)
    first = sequence_probabilities(DATA_FIRST, DATA_NEXT)
    assert_same(optimal_policy(independent(first, data=first), 1.0, reference=first)[0], first)


def test_ranks_drawn_from_plackett_luce_return_its_rewards():
    """Rankings with P(tau) = prod_k exp(r_tau(k)) / sum_{j>=k} exp(r_tau(j)) over any candidates: the optimum is r."""
    rewards = torch.linspace(-1, 1, 12, dtype=torch.float64)[[7, 2, 9, 0, 4, 11, 1, 5, 8, 3, 10, 6]]
    groups = []
    for candidates in itertools.product(range(12), repeat=3):
        scores = rewards[list(candidates)].exp()
        chance = math.prod(REFERENCE[list(candidates)].tolist()) * (scores[0] / scores.sum()).item()
        groups.append((chance * (scores[1] / scores[1:].sum()).item(), candidates))
    policy, _ = optimal_policy(groups, 2.0, ranks=as_drawn)
    assert_same(policy, normalised(REFERENCE * (rewards / 2).exp()))


@pytest.mark.parametrize(("negatives", "share"), [(1, 1.0), (2, 4 / 7), (3, 9 / 23)])
def test_ranks_that_say_nothing_shrink_the_reward(negatives, share):
    """To (1 - 1/K) / sum_{n=2..K} (1 - 1/n) of it, to first order: 1 for K = 2, and 0.103 for K = 12."""
    mild = normalised(REFERENCE**0.8 * DATA**0.2)
    policy, _ = optimal_policy(independent(*[REFERENCE] * negatives, data=mild), 1.0, ranks=as_drawn)
    reward, moved = (mild / REFERENCE).log(), (policy / REFERENCE).log()
    reward, moved = (values - REFERENCE @ values for values in (reward, moved))
    assert ((REFERENCE * reward) @ moved / ((REFERENCE * reward) @ reward)).item() == pytest.approx(share, abs=0.02)
    assert (1 - 1 / 12) / sum(1 - 1 / n for n in range(2, 13)) == pytest.approx(0.103, abs=5e-4)


def test_the_joint_loss_lies_between():
    assert_same(optimal_policy(independent(REFERENCE), 1.0, alpha=2.0)[0], DATA)
    way = [kl(DATA, optimal_policy(independent(REFERENCE), 5.0, alpha=alpha)[0]) for alpha in (0.0, 1.0, 5.0, 50.0)]
    assert way == sorted(way, reverse=True)
    assert way[-1] < 0.01


def test_scores_per_token():
    """pi_ref * exp(tokens * (log(p/q) + c) / beta), where c makes it sum to 1."""
    policy, _ = optimal_policy(independent(REFERENCE), 2.0, per_token=True)
    shift = 2.0 * (policy / REFERENCE).log() / LENGTHS - (DATA / REFERENCE).log()
    torch.testing.assert_close(shift, shift.mean().expand(12), rtol=0, atol=1e-6)
