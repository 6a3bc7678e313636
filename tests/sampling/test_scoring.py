"""Scores and meanfield negatives, compared with separate forward passes of a tiny model."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cpo_ray.config import SamplingConfig, TrainingConfig
from cpo_ray.errors import TrainingError
from cpo_ray.objective.architectures import layout_of
from cpo_ray.sampling import scoring
from cpo_ray.sampling.scoring import add_meanfield, batch_by_cost, choose_layout, measure_spread, measures_spread, score
from cpo_ray.sampling.units import empty_unit, read_units, write_units
from tests.objective.tiny_models import tiny_architecture
from tests.sampling.group_settings import make_config

EOS = 1


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def config():
    return SamplingConfig.model_validate({"negatives": {"meanfield": 3}})


def make_groups(rows=6):
    rng = torch.Generator().manual_seed(3)

    def some(length):
        return torch.randint(2, 50, (length,), generator=rng).tolist()

    groups = []
    for row in range(rows):
        gold = [*some(4 + row), EOS]
        groups.append(
            {
                "id": f"row{row}",
                "prompt": "",
                "prompt_ids": some(3 + row % 3),
                "candidate_kind": ["gold", "truncation", "batch", "autoregressive"],
                "candidate_ids": [gold, [*gold[:2], EOS], [*some(5), EOS], some(4)],
                "candidate_text": [],
                "similarity": [],
                "rank": [],
                "ref_logps": [],
            }
        )
    return groups


def as_unit(groups):
    return {**empty_unit(0, 17), "groups": groups}


def plain_logp(model, prompt, continuation):
    with torch.no_grad():
        logps = model(torch.tensor([prompt + continuation])).logits[0].log_softmax(-1)
    return sum(logps[len(prompt) + t - 1, token].item() for t, token in enumerate(continuation))


def test_scores_equal_separate_forward_passes_in_the_order_of_kinds(model, config):
    groups = make_groups()
    add_meanfield(model, as_unit(groups), config, EOS)
    score(model, groups)
    kinds = ["gold", "autoregressive", "batch", "meanfield", "meanfield", "meanfield", "truncation"]
    for group in groups:
        assert group["candidate_kind"] == kinds
        expected = [plain_logp(model, group["prompt_ids"], candidate) for candidate in group["candidate_ids"]]
        assert group["ref_logps"] == pytest.approx(expected, abs=1e-4)


def test_meanfield_does_not_depend_on_other_rows_of_the_batch(model, config, monkeypatch):
    together, alone, in_small_batches = make_groups(), make_groups(), make_groups()
    add_meanfield(model, as_unit(together), config, EOS)
    for group in alone:
        add_meanfield(model, as_unit([group]), config, EOS)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 20)
    add_meanfield(model, as_unit(in_small_batches), config, EOS)
    assert together == alone == in_small_batches


def test_meanfield_work_is_counted_and_no_candidate_is_repeated(model, config):
    unit = as_unit(make_groups())
    add_meanfield(model, unit, config, EOS)
    (work,) = unit["work"]
    assert work["kind"] == "meanfield"
    assert work["seconds"] > 0
    assert work["tokens"] >= 3 * sum(len(group["candidate_ids"][0]) for group in unit["groups"])
    for group in unit["groups"]:
        assert len(set(map(tuple, group["candidate_ids"]))) == len(group["candidate_ids"])


def test_a_cut_gold_is_resampled_up_to_its_last_token_and_scored_without_eos(model):
    """The distribution of the last token is the reference's after all tokens before it."""
    config = SamplingConfig.model_validate(
        {"negatives": {"meanfield": 40, "batch": 0, "truncation": 0}, "meanfield_fraction": 1.0, "redraws": 0}
    )
    (group,) = make_groups(1)
    gold = group["candidate_ids"][0] = group["candidate_ids"][0][:-1]
    add_meanfield(model, as_unit([group]), config, EOS)
    negatives = [
        ids for ids, kind in zip(group["candidate_ids"], group["candidate_kind"], strict=True) if kind == "meanfield"
    ]
    assert all(len(negative) == len(gold) and EOS not in negative for negative in negatives)
    assert len({negative[-1] for negative in negatives}) > 1
    score(model, [group])
    expected = [plain_logp(model, group["prompt_ids"], candidate) for candidate in group["candidate_ids"]]
    assert group["ref_logps"] == pytest.approx(expected, abs=1e-4)


def test_rounding_is_measured_between_the_scores_and_other_packings(model):
    """Scores that are off by a known amount, so that the test does not depend on a kernel's last digits."""
    groups = make_groups()
    score(model, groups)
    for row, group in enumerate(groups):
        group["ref_logps"] = [logp + 0.5 * row for logp in group["ref_logps"]]
    measure_spread(model, groups, 4)
    for row, group in enumerate(groups):
        assert group["ref_spread"] == pytest.approx([0.5 * row] * 4, abs=1e-4)


def test_rounding_is_measured_in_bf16_in_the_first_rows_of_a_split_or_the_first_step_of_a_stream():
    training = {"training": TrainingConfig(precision="bf16")}
    stored, streamed = (make_config(stream=stream).model_copy(update=training) for stream in (False, True))
    assert [measures_spread(start, stored) for start in (0, 255, 256)] == [True, True, False]
    assert [measures_spread(step, streamed) for step in (0, 1)] == [True, False]
    assert not measures_spread(0, make_config())  # float32
    moving = make_config(stream=True, refresh_steps=3, refresh_reference=True).model_copy(update=training)
    assert [step for step in range(7) if measures_spread(step, moving)] == [0, 3, 6]  # where training checks the scores


@torch.no_grad()
def test_a_reference_that_is_not_finite_is_named_with_row_candidate_and_layer(model, config):
    whole, model, groups = model, copy.deepcopy(model), make_groups(1)
    model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="row row0 are not finite"):
        add_meanfield(model, as_unit(groups), config, EOS)
    with pytest.raises(
        TrainingError, match=r"row row0 are not finite: candidate 0 \(gold\) has nan; every layer's output"
    ):
        score(model, groups)
    model = copy.deepcopy(whole)
    model.model.layers[1].mlp.up_proj.weight.fill_(torch.inf)
    with pytest.raises(
        TrainingError, match=r"the first layer whose output is not finite is Linear \(model.layers.1.mlp.up"
    ):
        score(model, groups)


def test_the_first_unit_settles_the_layout_of_the_reference_and_of_later_policies(tmp_path, caplog):
    """A reference of state spaces: a line says once that its continuations have rows of their own."""
    for name in ("reference", "policy"):
        tiny_architecture("mamba").save_pretrained(tmp_path / name)
    config = make_config(negatives={"meanfield": 3})
    scorer = scoring.Scorer(config, tmp_path / "reference", EOS)
    units = []
    for policy in ("", "", str(tmp_path / "policy")):
        units += read_units(scorer(write_units([{**as_unit(make_groups(2)), "policy": policy}])))
    assert caplog.text.count("each continuation is computed in a row of its own") == 1
    assert layout_of(scorer.policy[1]).separate == layout_of(scorer.reference).separate
    for group in (group for unit in units for group in unit["groups"]):
        expected = [plain_logp(scorer.reference, group["prompt_ids"], c) for c in group["candidate_ids"]]
        assert group["ref_logps"] == pytest.approx(expected, abs=1e-3)


def test_a_reference_that_cannot_be_scored_is_refused(model):
    model = copy.deepcopy(model)
    model.model.norm.register_forward_hook(lambda module, _, hidden: hidden + torch.randn_like(hidden))
    with pytest.raises(TrainingError, match="LlamaForCausalLM: in rows of their own, packed log-probs differ"):
        choose_layout(model, make_groups())


def test_batches_stay_within_the_budget_and_contain_every_index():
    assert list(batch_by_cost([0.5, 2.0, 0.25, 0.4, 0.3], 1.0)) == [[2, 4, 3], [0], [1]]
    assert list(batch_by_cost([], 1.0)) == []


def test_groups_of_different_k_are_scored_like_each_alone(model):
    """Ranked answers of the data make such groups. Shorter ones are filled up while they are packed."""
    groups = make_groups(rows=4)
    for group in groups[::2]:
        group["candidate_kind"], group["candidate_ids"] = ["gold", "answer"], group["candidate_ids"][:2]
    score(model, groups)
    for group in groups:
        expected = [plain_logp(model, group["prompt_ids"], candidate) for candidate in group["candidate_ids"]]
        assert group["ref_logps"] == pytest.approx(expected, abs=1e-4)
    measure_spread(model, groups, 2)
    assert [len(group["ref_spread"]) for group in groups] == [2, 4, 2, 4]
