"""Pairs of model and tokenizer, from directories without weights."""

import contextlib
import json
from functools import partial

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, GenerationConfig, LlamaConfig

from cpo_ray.checks.model_fit import check_model_fit
from cpo_ray.config import RunConfig
from cpo_ray.data.chat_template import load_data_tokenizer
from cpo_ray.data.tokenization import load_tokenizer, train_tokenizer
from cpo_ray.errors import ConfigError, DataError

TEXTS = [f"Add {n} and {n + 3}. The sum is {2 * n + 3}, isn't it? Yes!" for n in range(100)]
EOS = 0


def write_model(folder, tokenizer, *, generation_eos=None, **settings):
    """A model directory without weights."""
    defaults = {"vocab_size": 320, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": EOS}
    LlamaConfig(**defaults | settings).save_pretrained(folder)
    if generation_eos is not None:
        GenerationConfig(eos_token_id=generation_eos).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    """280 tokens."""
    return train_tokenizer(TEXTS, 280)


def check(model, tokenizer_path=None, **data):
    tree = {"name": "x", "model": {"path": str(model)}, "data": data}
    if tokenizer_path is not None:
        tree["data"] = data | {"tokenizer": {"path": str(tokenizer_path)}}
    return check_model_fit(RunConfig.model_validate(tree), partial(load_tokenizer, local_only=True), local_only=True)


def test_a_model_with_its_own_tokenizer_fits_also_if_its_embedding_is_padded(tokenizer, tmp_path):
    assert check(write_model(tmp_path, tokenizer)) is None


def test_an_adapter_without_weights_is_no_model(tokenizer, tmp_path):
    (write_model(tmp_path, tokenizer) / "adapter").mkdir()
    with pytest.raises(
        ConfigError, match=r"model\.path .* holds an adapter without the weights of its base\. .*merged"
    ):
        check(tmp_path)


def test_more_tokens_than_embeddings(tokenizer, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"has 280 tokens with ids up to 279, but model\.path .* has 278 embeddings.*This is the model.s own.*resize",
    ):
        check(write_model(tmp_path, tokenizer, vocab_size=278))


def test_added_tokens_within_the_padded_embedding_fit(tokenizer, tmp_path):
    write_model(tmp_path / "model", tokenizer)
    tokenizer.save_pretrained(tmp_path / "more")
    more = load_tokenizer(str(tmp_path / "more"))
    more.add_tokens(["<|user|>", "<|assistant|>"], special_tokens=True)
    more.save_pretrained(tmp_path / "more")
    assert check(tmp_path / "model", tmp_path / "more") is None


def test_another_tokenizer_of_the_same_size(tokenizer, tmp_path):
    other = train_tokenizer(["completely different words, zebra xylophone quartz " * 3] * 9, 280)
    write_model(tmp_path / "model", tokenizer)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ConfigError,
        match=r"ids of the tokenizer .* mean other tokens in the 280 of model\.path .* but there.*Leave out",
    ):
        check(tmp_path / "model", tmp_path / "other")


@pytest.mark.parametrize(("config_eos", "generation_eos"), [(5, None), (None, 5), ([5, 6], 7)])
def test_another_end_of_text(tokenizer, tmp_path, config_eos, generation_eos):
    write_model(tmp_path, tokenizer, eos_token_id=config_eos, generation_eos=generation_eos)
    with pytest.raises(
        ConfigError, match=r"ends a text with the token 0 \(<\|endoftext\|>\), but .* with (5|5 or 6 or 7) \("
    ):
        check(tmp_path)


def test_a_chat_template_that_ends_an_answer_in_another_way_than_the_model_is_for_another_model(tokenizer, tmp_path):
    """A base model has often the tokenizer of the chat model that was made of it."""
    tokenizer.save_pretrained(tmp_path)
    chat = load_tokenizer(str(tmp_path))
    chat.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    chat.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    model = write_model(tmp_path, chat, vocab_size=281)
    config = RunConfig.model_validate({"name": "x", "model": {"path": str(model)}, "data": {"path": "x.jsonl"}})
    with pytest.raises(
        ConfigError, match=r"token 280 \(<\|im_end\|>\), but .* with 0 .*base model, set data\.chat\.use=never"
    ):
        check_model_fit(config, partial(load_data_tokenizer, config.data), local_only=True)
    assert check(model, chat={"use": "never"}) is None


def test_one_of_several_ends_of_text_is_enough(tokenizer, tmp_path):
    assert check(write_model(tmp_path, tokenizer, eos_token_id=5, generation_eos=[5, EOS])) is None


def test_another_beginning_of_text_counts_only_where_it_is_in_the_prompts(tokenizer, tmp_path):
    write_model(tmp_path / "model", None, bos_token_id=7)
    tokenizer.save_pretrained(tmp_path / "own")
    with_bos = load_tokenizer(str(tmp_path / "own"))
    with_bos.add_special_tokens({"bos_token": "<s>"})
    with_bos.save_pretrained(tmp_path / "own")
    assert check(tmp_path / "model", tmp_path / "own") is None
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 280)])
    with_bos.save_pretrained(tmp_path / "own")
    with pytest.raises(ConfigError, match=r"begins a text with the token 280 \(<s>\), but .* with 7 \("):
        check(tmp_path / "model", tmp_path / "own")


def test_a_context_that_is_too_short_is_shown_with_the_arithmetic(tokenizer, tmp_path):
    write_model(tmp_path, tokenizer, max_position_embeddings=128)
    with pytest.raises(
        ConfigError, match=r"max_prompt_tokens 192 \+ .* 64 = 256 exceeds the 128 positions of model\.path"
    ):
        check(tmp_path)
    assert check(tmp_path, max_prompt_tokens=64) is None


def test_a_tokenizer_that_loses_text(tmp_path):
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", "A", "d", "dd"])}
    (tmp_path / "lossy").mkdir()
    (tmp_path / "lossy" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "lossy" / "merges.txt").write_text("d d\n")
    write_model(tmp_path / "model", None)
    with pytest.raises(ConfigError, match=r"encodes 'Add 3 and 4\.' as \[1, 3, .*, which it decodes as 'Add"):
        check(tmp_path / "model", tmp_path / "lossy")


def test_all_that_does_not_fit_is_in_one_message(tokenizer, tmp_path):
    write_model(tmp_path, tokenizer, max_position_embeddings=128, vocab_size=10, eos_token_id=5)
    with pytest.raises(ConfigError) as caught:
        check(tmp_path)
    assert len(str(caught.value).splitlines()) == 3


def test_what_is_not_on_this_machine_is_said(tokenizer, tmp_path):
    assert "owner/model-that-is-not-here is not on this machine" in check("owner/model-that-is-not-here")
    write_model(tmp_path, None)
    assert "data.tokenizer.path owner/absent is not on this machine" in check(tmp_path, "owner/absent")


def test_directories_that_are_missing_or_no_models(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.path: there is no directory .*absent"):
        check(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"model\.path .*empty cannot be read as a model"):
        check(tmp_path / "empty")
    with pytest.raises(DataError, match="there is no directory"):
        check(write_model(tmp_path / "model", tokenizer), tmp_path / "absent")


def test_a_model_from_scratch_has_nothing_to_compare():
    assert check_model_fit(RunConfig(name="x"), pytest.fail) is None


@pytest.mark.parametrize(
    ("kind", "fault"), [("llama", "a `llama` of this configuration has no routers, as model.path"), ("mixtral", None)]
)
def test_an_auxiliary_loss_of_routers_needs_routers(tokenizer, tmp_path, kind, fault):
    settings = {"vocab_size": 320, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": EOS}
    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tree = {"name": "x", "model": {"path": str(tmp_path)}, "reference": {"router_auxiliary_loss": 0.01}}
    config = RunConfig.model_validate(tree)
    with pytest.raises(ConfigError, match=fault) if fault else contextlib.nullcontext():
        check_model_fit(config, load_tokenizer, local_only=True)
