"""Chat models: the tokenizer's chat template renders prompts and answers, the only place where that is done.

A prompt ends where the template's generation prompt ends. What the template writes after it, up to the token that ends the
turn, is the continuation. That token is made the tokenizer's EOS, so that whatever generates, scores or trains stops there.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cpo_ray.config import ChatConfig, DataConfig
from cpo_ray.data.tokenization import Tokenizer, load_tokenizer
from cpo_ray.errors import DataError
from cpo_ray.records import Tokens

Message = Mapping[str, Any]

PROBE = "Continuation"
SWITCH = "enable_thinking"
SWITCH_OFF = f"{{% if {SWITCH} is not defined %}}{{% set {SWITCH} = false %}}{{% endif %}}"
"""Before a template with this switch, so that it is off by default wherever the saved tokenizer renders a conversation."""
EXCERPT = 80


class ChatTemplateError(Exception):
    """A conversation that the template cannot render, or renders in a way that has no boundary. The message says why."""


class RenderedChat(NamedTuple):
    """A conversation as text. `tail` begins with the token that ends the turn."""

    prompt: str
    continuation: str
    tail: str


def find_chat_template(config: ChatConfig, tokenizer: Tokenizer) -> "ChatTemplate | None":
    """The tokenizer's chat template, if it has one and the configuration uses it. Makes its end of a turn the EOS.

    Raises DataError for `use: always` without a template, and for a template that does not end a turn with a special token.
    """
    if config.use == "never" or (config.use == "auto" and not tokenizer.chat_template):
        return None
    if not tokenizer.chat_template:
        raise DataError(
            "data.chat.use is `always`, but the tokenizer has no chat template: name an instruct model's, or set "
            "data.chat.use=never to use data.template"
        )
    return ChatTemplate(tokenizer, thinking=config.thinking)


def load_data_tokenizer(data: DataConfig, path: str, *, local_only: bool = False) -> Tokenizer:
    """The tokenizer at `path` as stage `data` writes it, if it is the data's: its EOS ends an answer of its chat template.

    local_only and errors: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(path, local_only=local_only)
    if path == data.tokenizer.path and not data.responses_go_on:
        find_chat_template(data.chat, tokenizer)
    return tokenizer


class ChatTemplate:
    """Renders and tokenizes conversations. `end`: the special token that ends the assistant's turn."""

    def __init__(self, tokenizer: Tokenizer, *, thinking: bool) -> None:
        """Find the end of a turn. Raises DataError for a template that has none."""
        self.tokenizer = tokenizer
        # A template may write the tokenizer's original EOS, which is another token than `end` in some families.
        self.options = {SWITCH: thinking, "eos_token": tokenizer.eos_token}
        self.special = _special_texts(tokenizer)
        self.end = self._find_end()
        if tokenizer.eos_token != self.end:
            tokenizer.eos_token = self.end
        if not thinking and isinstance(tokenizer.chat_template, str) and SWITCH in tokenizer.chat_template:
            tokenizer.chat_template = SWITCH_OFF + tokenizer.chat_template.removeprefix(SWITCH_OFF)

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> RenderedChat:
        """The conversation, whose last message is the answer. Raises ChatTemplateError."""
        self._refuse_special_texts(messages)
        prompt = self.render_prompt(messages[:-1], tools)
        whole = self._apply(messages, tools, generation=False)
        if not whole.startswith(prompt):
            shared = next((n for n, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
            raise ChatTemplateError(
                f"the chat template writes what precedes the answer in two ways: with the answer, {whole[shared:][:EXCERPT]!r} "
                f"stands where the prompt for it has {prompt[shared:][:EXCERPT]!r}. If the answer has thoughts, set "
                "data.chat.thinking=true; otherwise leave such rows out"
            )
        continuation, end, rest = whole[len(prompt) :].partition(self.end)
        if not end:
            raise ChatTemplateError(
                f"the chat template does not end this answer with {self.end!r}. Leave such rows out"
            )
        return RenderedChat(prompt, continuation, end + rest)

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """What precedes an answer, the generation prompt included. Raises ChatTemplateError."""
        return self._apply(messages, tools, generation=True)

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of rendered texts, in which special tokens are what they spell, and none is added."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def shorten(self, messages: Sequence[Message], tools: Sequence[Any] | None, max_tokens: int) -> Tokens:
        """The tokens of a prompt that is too long: without its oldest turns, then without the beginning of the last text.

        System messages stay. messages: what precedes the answer. Raises ChatTemplateError if even that does not fit.
        """
        kept = list(messages)
        first = next((n for n, message in enumerate(kept) if message["role"] != "system"), 0)
        while True:
            (ids,) = self.encode([self.render_prompt(kept, tools)])
            if len(ids) <= max_tokens:
                return ids
            following = next((n for n in range(first + 1, len(kept)) if kept[n]["role"] == "user"), None)
            if following is None:
                return self._cut_text(kept, tools, max_tokens, len(ids) - max_tokens)
            del kept[first:following]

    def _cut_text(self, messages: list[Message], tools: Sequence[Any] | None, max_tokens: int, excess: int) -> Tokens:
        """The prompt with the last tokens of its user's text."""
        place = max(n for n, message in enumerate(messages) if message["role"] == "user")
        (text_ids,) = self.encode([messages[place]["content"]])
        left = len(text_ids) - excess
        while left > 0:
            text = self.tokenizer.decode(text_ids[-left:]).strip("\N{REPLACEMENT CHARACTER}")
            shorter = [*messages[:place], {**messages[place], "content": text}, *messages[place + 1 :]]
            (ids,) = self.encode([self.render_prompt(shorter, tools)])
            if len(ids) <= max_tokens:
                return ids
            left -= len(ids) - max_tokens
        raise ChatTemplateError(
            f"data.max_prompt_tokens {max_tokens} has no room for what the chat template writes around the user's text: "
            "raise it"
        )

    def _find_end(self) -> str:
        """The special token after an answer. Raises DataError if there is none."""
        probe = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
        try:
            _, found, tail = self._apply(probe, None, generation=False).rpartition(PROBE)
        except ChatTemplateError as error:
            raise DataError(f"data.tokenizer.path: {error}. Set data.chat.use=never to use data.template") from None
        (ids,) = self.encode([tail])
        end = self.tokenizer.convert_ids_to_tokens(ids[0]) if ids else ""
        if not found or end not in self.special:
            raise DataError(
                f"data.tokenizer.path: the chat template ends an answer with {tail[:EXCERPT]!r}, which does not begin "
                "with a special token, so a model cannot learn to stop. Correct the template, or set data.chat.use=never"
            )
        return str(end)

    def _apply(self, messages: Sequence[Message], tools: Sequence[Any] | None, *, generation: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=list(tools) if tools else None,
                    tokenize=False,
                    add_generation_prompt=generation,
                    **self.options,
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ChatTemplateError(
                f"the chat template cannot render this conversation ({reason}). Leave such rows out"
            ) from None

    def _refuse_special_texts(self, messages: Sequence[Message]) -> None:
        for number, message in enumerate(messages):
            text = message.get("content") or ""
            spelled = next((token for token in self.special if token in text), None)
            if spelled is not None:
                raise ChatTemplateError(
                    f"the text of message {number} spells {spelled!r}, which is a special token and would be read as one. "
                    "Leave such rows out"
                )


def _special_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The texts of all tokens that are marked as special."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))
