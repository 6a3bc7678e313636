import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from cpo_ray.artifacts import content_key
from cpo_ray.config import ClusterConfig, RewardConfig
from cpo_ray.errors import ArtifactError, ConfigError, ServiceError
from cpo_ray.evaluation.pairs import Pair
from cpo_ray.evaluation.reward import (
    Question,
    RewardModel,
    Score,
    compare_scores,
    load_reward_model,
    score_questions,
    summarise_rewards,
)
from cpo_ray.evaluation.reward_pool import collect_questions, score_generations
from cpo_ray.evaluation.statistics import win_rate_interval

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
CHAT = "{% for turn in messages %}{{ turn['role'][0] + ' ' + turn['content'] + ' ' }}{% endfor %}"
QUESTIONS = [Question("a b c", "d"), Question("a", "e f g h i j k"), Question("", "x"), Question("q r s t", "")]
SMALL = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": 1,
}


def write_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerFast:
    """One letter is one token; pairs as BERT has them."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **options)
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward") / "bert"
    torch.manual_seed(1)
    model = BertForSequenceClassification(BertConfig(**SMALL, max_position_embeddings=24, initializer_range=0.5))
    model.save_pretrained(folder)
    write_tokenizer(folder, pad_token="[PAD]")
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a chat template and no padding token."""
    folder = tmp_path_factory.mktemp("reward") / "llama"
    torch.manual_seed(2)
    config = LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.5)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    write_tokenizer(folder, chat_template=CHAT)
    return folder


def load(folder: Path, **config: Any) -> RewardModel:
    return load_reward_model(RewardConfig(model=str(folder), **config), "cpu")


def alone(reward: RewardModel, **inputs: Any) -> float:
    with torch.no_grad():
        return float(reward.model(**{key: torch.tensor([value]) for key, value in inputs.items()}).logits)


@pytest.mark.parametrize("batch_tokens", [1, 30, 8192])
def test_an_encoder_scores_pairs_as_it_does_alone(bert: Path, batch_tokens: int) -> None:
    reward = load(bert)
    assert (reward.style, reward.limit) == ("pair", 24)
    scores = score_questions(reward, QUESTIONS, batch_tokens)
    expected = [alone(reward, **reward.tokenizer(*question)) for question in QUESTIONS]
    assert [score.reward for score in scores] == pytest.approx(expected, abs=1e-5)
    assert len({round(score.reward, 4) for score in scores}) == 4
    assert not any(score.cut for score in scores)


@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_a_decoder_without_a_padding_token_scores_turns_as_it_does_alone(llama: Path, batch_tokens: int) -> None:
    reward = load(llama)
    assert reward.style == "chat"
    scores = score_questions(reward, QUESTIONS, batch_tokens)
    texts = [f"u {prompt} a {response}" for prompt, response in QUESTIONS]
    expected = [alone(reward, input_ids=reward.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    assert [score.reward for score in scores] == pytest.approx(expected, abs=1e-5)
    assert reward.model.config.pad_token_id is None


def test_what_does_not_fit_loses_the_beginning_of_its_prompt(bert: Path) -> None:
    reward = load(bert, max_tokens=8)  # three of them are [CLS] and [SEP]
    long, kept, longer, cut = score_questions(
        reward,
        [
            Question("a b c d e f", "x y z"),
            Question("e f", "x y z"),
            Question("a", "p q r s t u v w"),
            Question("", "p q r s t"),
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


def test_a_chat_template_that_is_not_there_and_a_model_that_is_not_are_named(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward.style chat: the tokenizer of .* has no chat template"):
        load(bert, style="chat")
    with pytest.raises(ConfigError, match="neither a model directory nor"):
        load(tmp_path / "nowhere")


def test_a_score_that_is_not_finite_names_its_prompt(bert: Path) -> None:
    reward = load(bert)
    torch.nn.init.constant_(reward.model.classifier.bias, float("nan"))
    with pytest.raises(ServiceError, match="scores nan for the prompt 'a'"):
        score_questions(reward, QUESTIONS[1:2], 8192)


def pair(key: str, response: str, reference: str) -> Pair:
    return Pair(id=key, prompt="p", response=response, reference=reference)


def test_preferences_by_hand() -> None:
    pairs = [pair("1", "a b c", "d"), pair("2", "e", "f g"), pair("3", "same", "same")]
    ours, theirs = [Score(2.0, False), Score(-1.0, True), Score(0.5, False)], [Score(1.0, False)] * 2
    rows = compare_scores(pairs, ours, [*theirs, Score(0.5, False)])
    assert [row["outcome"] for row in rows] == ["win", "loss", "tie"]
    assert rows[1] == {"id": "2", "outcome": "loss", "candidate": -1.0, "reference": 1.0, "cut": True}
    summary = summarise_rewards(pairs, rows)
    assert (summary["win_rate"], *summary["ci95"]) == win_rate_interval(["win", "loss", "tie"])
    assert summary["mean_reward_candidate"] == pytest.approx(0.5)
    assert summary["mean_reward_reference"] == pytest.approx(2.5 / 3)
    assert [summary[what] for what in ("n", "wins", "losses", "ties", "cut")] == [3, 1, 1, 1, 1]
    assert summary["length_controlled"]["effect"] > 0  # the longer won


def test_each_text_is_asked_about_once() -> None:
    same, other = pair("1", "a", "gold"), pair("1", "b", "gold")
    questions = collect_questions({"mle": {"greedy": [same]}, "cpo": {"greedy": [other], "top_p": [same]}})
    assert list(questions.values()) == [("p", "a"), ("p", "gold"), ("p", "b")]
    with pytest.raises(ArtifactError, match=r"no generations to score \(greedy\)"):
        collect_questions({"mle": {"greedy": []}})


@pytest.fixture
def ray_here() -> Iterator[None]:
    import ray

    ray.init(num_cpus=2, object_store_memory=2**28, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.e2e
def test_actors_score_a_run_and_a_killed_one_keeps_its_scores(ray_here: None, bert: Path, tmp_path: Path) -> None:
    letters = WORDS[4:]
    pairs = [pair(str(n), " ".join(letters[n % 20 : n % 20 + 3]), letters[n % 26]) for n in range(100)]
    generations, cluster = {"mle": {"greedy": pairs[:50]}, "cpo": {"greedy": pairs}}, ClusterConfig()
    done: list[int] = []
    known = content_key(["p", pairs[0]["response"]])
    (tmp_path / "scores.partial").write_text(json.dumps({"key": known, "value": [99.0, False]}) + "\n")
    summary = score_generations(generations, RewardConfig(model=str(bert)), cluster, tmp_path, done.append)
    assert sum(done) == len(collect_questions(generations))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpo", "mle", "scores.json"]
    rows = [json.loads(line) for line in (tmp_path / "cpo" / "greedy.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [pair["id"] for pair in pairs]
    assert rows[0]["candidate"] == 99.0  # not computed again
    expected = score_questions(load(bert), [Question("p", pair["response"]) for pair in pairs[1:20]], 8192)
    assert [row["candidate"] for row in rows[1:20]] == pytest.approx([score.reward for score in expected], abs=1e-5)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert summary == {f"{model} greedy": scores[model]["greedy"]["win_rate"] for model in ("mle", "cpo")}
    assert scores["mle"]["greedy"]["n"] == 50
    chat = RewardConfig(model=str(bert), style="chat")
    with pytest.raises(ConfigError, match="has no chat template"):
        score_generations(generations, chat, cluster, tmp_path / "chat", done.append)
