"""Conversations under a chat template, against the template's own rendering and tokenization."""

from typing import Any

import pytest

from cpo_ray.config import ChatConfig
from cpo_ray.data.chat_template import SWITCH, ChatTemplate, ChatTemplateError, find_chat_template, load_data_tokenizer
from cpo_ray.data.tokenization import load_tokenizer, train_tokenizer
from cpo_ray.errors import DataError
from tests.data.chat_families import CHATML, FAMILIES, IM, LLAMA3, QWEN3, TEXTS, Family, Message
from tests.data.test_examples import configure

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}


def turns(*contents: str, system: str = "") -> list[Message]:
    said = zip(("user", "assistant") * len(contents), contents, strict=False)
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *({"role": role, "content": content} for role, content in said)]


def own_tokens(tokenizer: Any, messages: list[Message], *, generation: bool, **options: Any) -> list[int]:
    """The template's own tokenization."""
    made = tokenizer.apply_chat_template(messages, add_generation_prompt=generation, return_dict=True, **options)
    return list(made["input_ids"])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("answers", [1, 2])
def test_prompt_and_answer_are_the_templates_own_tokens(name, answers, tmp_path):
    """Tokenized apart, with the token that ends the turn, they are what `apply_chat_template` gives for the whole."""
    family = FAMILIES[name]
    tokenizer, own = family.save(tmp_path), load_tokenizer(str(tmp_path))
    chat = find_chat_template(ChatConfig(), tokenizer)
    said = ["Why is the sky blue?", "It scatters light."] * answers
    messages = turns(*said, system="Be brief." if family.has_system else "")
    prompt, continuation, tail = chat.encode(chat.render(messages))
    whole = own_tokens(own, messages, generation=False, **family.options)
    assert [*prompt, *continuation, *tail] == whole
    assert prompt == own_tokens(own, messages[:-1], generation=True, **family.options)
    assert tail[0] == tokenizer.eos_token_id == own.convert_tokens_to_ids(family.end)
    assert own.decode(continuation).strip() == "It scatters light."


def test_tools_and_their_results_are_rendered(tmp_path):
    chat = find_chat_template(ChatConfig(), FAMILIES["tools"].save(tmp_path))
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    messages = [
        *turns("What is 2 + 3?"),
        call,
        {"role": "tool", "name": "add", "content": "5"},
        *turns("", "It is 5.")[1:],
    ]
    prompt, continuation, _ = chat.render(messages, tools)
    assert "Tools: [" in prompt
    assert '<tool_call>{"name": "add"' in prompt.replace("arguments", "")
    assert "<|im_start|>tool\n5<|im_end|>" in prompt
    assert continuation == "It is 5."
    assert "<tool_call>" in chat.render([*turns("What is 2 + 3?"), call], tools).continuation


def test_thinking_is_switched_off_in_the_prompt_or_part_of_the_answer(tmp_path):
    family, thoughts = FAMILIES["qwen3"], "<think>\nLight.\n</think>\n\n"
    off = find_chat_template(ChatConfig(), family.save(tmp_path / "off"))
    assert off.render(turns("Why?", "So.")).prompt.endswith("assistant\n<think>\n\n</think>\n\n")
    on = find_chat_template(ChatConfig(thinking=True), family.save(tmp_path / "on"))
    for answer in ({"content": f"{thoughts}So."}, {"content": "So.", "reasoning_content": "Light."}):
        messages = [*turns("Why?"), {"role": "assistant", **answer}]
        prompt, continuation, _ = on.render(messages)
        assert prompt.endswith("<|im_start|>assistant\n")
        assert continuation == f"{thoughts}So."
        with pytest.raises(ChatTemplateError, match=r"in two ways.*set data\.chat\.thinking=true"):
            off.render(messages)


def test_a_saved_tokenizer_ends_answers_and_does_not_think_unless_it_is_told_to(tmp_path):
    """What serves a model uses this tokenizer."""
    chat = find_chat_template(ChatConfig(), Family(QWEN3, "<|im_end|>", IM).save(tmp_path / "own"))
    chat.tokenizer.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(str(tmp_path / "saved"))
    assert saved.eos_token == "<|im_end|>"
    prompts = [
        saved.apply_chat_template(turns("Why?"), tokenize=False, add_generation_prompt=True, **options)
        for options in ({}, {SWITCH: False}, {SWITCH: True})
    ]
    assert prompts[0] == prompts[1] == chat.render_prompt(turns("Why?"))
    assert prompts[2] == prompts[0].removesuffix("<think>\n\n</think>\n\n")
    again = find_chat_template(ChatConfig(), load_tokenizer(str(tmp_path / "saved")))
    assert again.tokenizer.chat_template == saved.chat_template


def test_the_template_is_used_if_there_is_one_unless_the_configuration_says_otherwise(tmp_path):
    FAMILIES["llama3"].save(tmp_path / "chat")
    train_tokenizer(TEXTS, 300).save_pretrained(tmp_path / "base")

    def load(name: str, **chat: Any) -> Any:
        path = str(tmp_path / name)
        data = configure(tokenizer={"path": path}, chat=chat, train_rows=1, validation_rows=0, test_rows=1).data
        return load_data_tokenizer(data, path).eos_token

    assert load("chat") == load("chat", use="always") == "<|eot_id|>"
    assert load("chat", use="never") == load("base") == "<|endoftext|>"
    with pytest.raises(DataError, match=r"data\.chat\.use is `always`, but the tokenizer has no chat template"):
        load("base", use="always")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("<|im_end|>", ""), "ends an answer with .* does not begin with a special token"),
        ("{{ messages[0].content }}<|im_end|>", "does not begin with a special token"),
        ("{{ raise_exception('only for tools') }}", r"cannot render this conversation \(only for tools\)"),
        ("{% for m in messages %}", r"cannot render this conversation \(Unexpected end of template"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_a_remedy(template, reason, tmp_path):
    with pytest.raises(DataError, match=rf"(?s){reason}.*data\.chat\.use=never"):
        find_chat_template(ChatConfig(), Family(template, "<|im_end|>", IM).save(tmp_path))


def test_a_conversation_that_cannot_be_rendered_is_named(tmp_path):
    gemma = find_chat_template(ChatConfig(), FAMILIES["gemma"].save(tmp_path / "gemma"))
    with pytest.raises(ChatTemplateError, match=r"cannot render this conversation \(no role system\)"):
        gemma.render(turns("Why?", "So.", system="Be brief."))
    llama = find_chat_template(ChatConfig(), FAMILIES["llama3"].save(tmp_path / "llama"))
    with pytest.raises(
        ChatTemplateError, match=r"the text of message 0 spells '<\|eot_id\|>', which is a special token"
    ):
        llama.render(turns("What is <|eot_id|>?", "A token."))
    dropped = LLAMA3.replace("<|eot_id|>", "{% if m.content != 'So.' %}<|eot_id|>{% endif %}")
    no_end = ChatTemplate(
        Family(dropped, "<|eot_id|>", FAMILIES["llama3"].special, bos="<s>").save(tmp_path), thinking=False
    )
    with pytest.raises(ChatTemplateError, match=r"does not end this answer with '<\|eot_id\|>'"):
        no_end.render(turns("Why?", "So."))


def test_a_long_prompt_loses_its_oldest_turns_and_then_the_beginning_of_its_text(tmp_path):
    chat = find_chat_template(ChatConfig(), FAMILIES["chatml"].save(tmp_path))
    messages = turns("Why is the sky blue?", "It scatters light.", "What is 2 + 3?", system="Be brief.")
    (whole,) = chat.encode([chat.render_prompt(messages)])
    assert chat.shorten(messages, None, len(whole)) == whole
    kept = [messages[0], messages[3]]
    (without_first,) = chat.encode([chat.render_prompt(kept)])
    for limit in range(len(without_first), len(whole)):
        assert chat.shorten(messages, None, limit) == without_first
    cut = chat.shorten(messages, None, len(without_first) - 2)
    assert len(cut) <= len(without_first) - 2
    text = chat.tokenizer.decode(cut)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("+ 3?<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(ChatTemplateError, match="max_prompt_tokens 9 has no room for what the chat template writes"):
        chat.shorten(messages, None, 9)
