import random

import pytest

from benchmarks.groups import EOS, K, make_batches, token_pairs
from benchmarks.results import line, not_measured, ratio, ratio_of_sums
from benchmarks.steps import STEPS, flops_saved, make_model, mle_like, pack_separately, padded_gib, rows_of
from benchmarks.training import paired
from cpo_ray.objective.packing import drop_padding, pack_groups

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def batch():
    """Two short groups."""
    prompts, groups = make_batches(12)[0][0]
    return [prompt[:9] for prompt in prompts[:2]], [[[*c[:7], EOS] for c in group] for group in groups[:2]]


def test_groups_are_mixn_with_the_gold_first():
    batches, _ = make_batches(3)
    for prompts, groups in batches:
        assert len(prompts) == len(groups) == 4
        for group in groups:
            gold, cuts = group[0], group[9:]
            assert len(group) == K
            assert gold not in group[1:]
            assert all(candidate[-1] == EOS for candidate in group)
            assert all(cut[:-1] == gold[: len(cut) - 1] for cut in cuts)


def test_separate_packing_shares_no_prefix(batch):
    packed = pack_separately(batch)
    assert packed.tokens == sum(len(p) + len(c) - 1 for p, c in rows_of(batch))
    assert len(packed.source_S) == sum(len(c) for _, c in rows_of(batch))


def test_every_variant_computes_the_same_loss(batch):
    model = make_model("tiny")
    losses = [STEPS[name](model, batch).item() for name in ("tree", "rows", "separate", "unshared", "padded")]
    assert losses == pytest.approx([losses[0]] * 5, rel=1e-4)
    assert len(paired(model, [(("tree", batch), ("separate", batch))], 2)) == 2


@pytest.mark.parametrize("predicted", [True, False])
def test_mle_has_as_many_tokens_as_cpo(predicted):
    batch = make_batches(3)[0][0]
    texts, _ = token_pairs(100, random.Random(5))
    ours = drop_padding(pack_groups(*batch))
    theirs = drop_padding(pack_groups(*mle_like(batch, texts, predicted=predicted)))
    assert theirs.tokens == pytest.approx(ours.tokens, rel=0.03)
    if predicted:
        assert len(theirs.source_S) == pytest.approx(len(ours.source_S), rel=0.05)


def test_the_memory_of_a_padded_step_is_its_logits(batch):
    assert padded_gib(batch) == pytest.approx(3 * 4 * 50_257 * 24 * 17 / 2**30)


def test_a_ratio_is_the_median_with_its_spread():
    entry = ratio([1.0, 9.0, 2.0], ">= 1.9", "that", "times faster")
    assert (entry["value"], entry["spread"], entry["holds"], entry["pairs"]) == (2.0, [1.0, 9.0], True, 3)
    assert not ratio([1.2], "<= 1.15", "that", "as long")["holds"]
    assert line(entry) == "2.0 (target >= 1.9: holds; 1.0 to 9.0) times faster, against that"
    assert line(not_measured(">= 1", "that", "what", "no such thing")) == "not measured: no such thing"


def test_a_ratio_of_sums_gives_long_steps_more_weight():
    entry = ratio_of_sums([(1.0, 1.5), (3.0, 9.0), (1.0, 1.0)], ">= 1.9", "that", "times faster")
    assert (entry["value"], entry["median"], entry["spread"], entry["holds"]) == (2.3, 1.5, [1.0, 3.0], True)
    assert line(entry) == "2.3 (target >= 1.9: holds; median 1.5, 1.0 to 3.0) times faster, against that"


def test_sharing_saves_more_if_the_head_is_a_smaller_share():
    batch = make_batches(3)[0][0]
    ours, rows = drop_padding(pack_groups(*batch)), pack_separately(batch)
    saved = len(rows.source_S) / len(ours.source_S), rows.tokens / ours.tokens
    assert (
        saved[0]
        < flops_saved(batch, 384, 6)
        < flops_saved(batch, 256, 22)
        < flops_saved(batch, 256, 220)
        < saved[1] * 1.1
    )
