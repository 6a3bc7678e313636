"""Scores and meanfield negatives, compared with separate forward passes of a tiny model."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cpo_ray.config import SamplingConfig, TrainingConfig
from cpo_ray.errors import TrainingError
from cpo_ray.sampling import scoring
from cpo_ray.sampling.scoring import add_meanfield, batch_by_cost, measure_spread, measures_spread, score
from cpo_ray.sampling.units import empty_unit
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


def test_non_finite_outputs_of_the_reference_raise_an_error_with_the_row(model, config, monkeypatch):
    groups = make_groups(1)
    monkeypatch.setattr(model.lm_head, "weight", torch.nn.Parameter(torch.full((50, 32), torch.nan)))
    with pytest.raises(TrainingError, match="row row0 are not finite"):
        add_meanfield(model, as_unit(groups), config, EOS)
    with pytest.raises(TrainingError, match="row row0 are not finite"):
        score(model, groups)


def test_batches_stay_within_the_budget_and_contain_every_index():
    assert list(batch_by_cost([0.5, 2.0, 0.25, 0.4, 0.3], 1.0)) == [[2, 4, 3], [0], [1]]
    assert list(batch_by_cost([], 1.0)) == []
