from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from cpo_ray.errors import ConfigError, ServiceError
from cpo_ray.evaluation.reward import (
    PromptResponse,
    RewardModel,
    RewardScore,
    compare_scores,
    score_responses,
    summarise_rewards,
)
from cpo_ray.evaluation.statistics import win_rate_interval
from tests.evaluation.tiny_reward_models import SMALL, load, pair, write_bert, write_tokenizer

CHAT = "{% for turn in messages %}{{ turn['role'][0] + ' ' + turn['content'] + ' ' }}{% endfor %}"
ITEMS = [
    PromptResponse("a b c", "d"),
    PromptResponse("a", "e f g h i j k"),
    PromptResponse("", "x"),
    PromptResponse("q r s t", ""),
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("reward") / "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a chat template and no padding token."""
    folder = tmp_path_factory.mktemp("reward") / "llama"
    torch.manual_seed(2)
    config = LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.5)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    write_tokenizer(folder, chat_template=CHAT)
    return folder


def score_alone(reward: RewardModel, **inputs: Any) -> float:
    with torch.no_grad():
        return float(reward.model(**{key: torch.tensor([value]) for key, value in inputs.items()}).logits)


@pytest.mark.parametrize("batch_tokens", [1, 30, 8192])
def test_an_encoder_scores_a_batch_like_single_pairs(bert: Path, batch_tokens: int) -> None:
    reward = load(bert)
    assert (reward.style, reward.limit) == ("pair", 24)
    scores = score_responses(reward, ITEMS, batch_tokens)
    expected = [score_alone(reward, **reward.tokenizer(*question)) for question in ITEMS]
    assert [score.reward for score in scores] == pytest.approx(expected, abs=1e-5)
    assert len({round(score.reward, 4) for score in scores}) == 4
    assert not any(score.cut for score in scores)


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_a_decoder_without_a_padding_token_scores_a_batch_like_single_chats(llama: Path, batch_tokens: int) -> None:
    reward = load(llama)
    assert reward.style == "chat"
    scores = score_responses(reward, ITEMS, batch_tokens)
    texts = [f"u {prompt} a {response}" for prompt, response in ITEMS]
    expected = [
        score_alone(reward, input_ids=reward.tokenizer(text, add_special_tokens=False).input_ids) for text in texts
    ]
    assert [score.reward for score in scores] == pytest.approx(expected, abs=1e-5)
    assert reward.model.config.pad_token_id is None


def test_a_long_prompt_loses_its_beginning(bert: Path) -> None:
    reward = load(bert, max_tokens=8)  # three of them are [CLS] and [SEP]
    long, kept, longer, cut = score_responses(
        reward,
        [
            PromptResponse("a b c d e f", "x y z"),
            PromptResponse("e f", "x y z"),
            PromptResponse("a", "p q r s t u v w"),
            PromptResponse("", "p q r s t"),
        ],
        8192,
    )
    assert (long.cut, kept.cut, longer.cut, cut.cut) == (True, False, True, False)
    assert long.reward == pytest.approx(kept.reward, abs=1e-5)
    assert longer.reward == pytest.approx(cut.reward, abs=1e-5)


def test_a_classifier_of_several_classes_is_refused(tmp_path: Path) -> None:
    BertForSequenceClassification(BertConfig(**(SMALL | {"num_labels": 3}))).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has 3 outputs; a reward model has one"):
        load(tmp_path)


def test_a_language_model_without_a_head_is_refused(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"lacks score.weight: it would score with random weights"):
        load(tmp_path)


def test_a_missing_chat_template_and_a_missing_model_are_named(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward.style chat: the tokenizer of .* has no chat template"):
        load(bert, style="chat")
    with pytest.raises(ConfigError, match="neither a model directory nor"):
        load(tmp_path / "nowhere")


def test_a_score_that_is_not_finite_names_its_prompt(bert: Path) -> None:
    reward = load(bert)
    torch.nn.init.constant_(reward.model.classifier.bias, float("nan"))
    with pytest.raises(ServiceError, match="scores nan for the prompt 'a'"):
        score_responses(reward, ITEMS[1:2], 8192)


def test_preferences_by_hand() -> None:
    pairs = [pair("1", "a b c", "d"), pair("2", "e", "f g"), pair("3", "same", "same")]
    ours, theirs = (
        [RewardScore(2.0, False), RewardScore(-1.0, True), RewardScore(0.5, False)],
        [RewardScore(1.0, False)] * 2,
    )
    rows = compare_scores(pairs, ours, [*theirs, RewardScore(0.5, False)])
    assert [row["outcome"] for row in rows] == ["win", "loss", "tie"]
    assert rows[1] == {"id": "2", "outcome": "loss", "candidate": -1.0, "reference": 1.0, "cut": True}
    summary = summarise_rewards(pairs, rows)
    assert (summary["win_rate"], *summary["ci95"]) == win_rate_interval(["win", "loss", "tie"])
    assert summary["mean_reward_candidate"] == pytest.approx(0.5)
    assert summary["mean_reward_reference"] == pytest.approx(2.5 / 3)
    assert [summary[what] for what in ("n", "wins", "losses", "ties", "cut")] == [3, 1, 1, 1, 1]
    assert summary["length_controlled"]["effect"] > 0  # the longer won
