"""Rows as conversations for a chat template: rendered before the split, tokenized after it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cpo_ray.data.chat import read_chat
from cpo_ray.data.chat_template import ChatTemplate, ChatTemplateError
from cpo_ray.data.rows import BadRow, InstructionRow, Place
from cpo_ray.errors import DataError
from cpo_ray.records import Tokens


@dataclass(frozen=True)
class RenderedRow:
    """A row as text under the chat template. `prompt` + `continuation` + `tail` is the conversation."""

    row: InstructionRow
    text: str  # the prompt for people and judges
    prompt: str
    continuation: str
    tail: str
    others: tuple[str, ...]  # continuations of the other answers that the data ranks


@dataclass(frozen=True)
class ChatTokens:
    """The tokens of a row, before a response is cut."""

    prompt: Tokens
    response: Tokens  # without the token that ends the turn
    others: list[Tokens]
    is_shortened: bool  # whether the prompt lost its beginning
    differs: bool  # whether the template's own tokenization of the whole conversation is another one


def render_rows(
    rows: Iterable[InstructionRow], texts: Iterable[str], chat: ChatTemplate
) -> Iterator[RenderedRow | BadRow]:
    """Each row with its prompt `text` under the template, or why it cannot be rendered."""
    for row, text in zip(rows, texts, strict=True):
        try:
            yield _render(row, text, chat)
        except ChatTemplateError as error:
            place = row.place or Place(f"the row {text[:40]!r}", None, None)
            yield place.bad(str(error))


def refuse_tools(rows: Iterable[InstructionRow]) -> Iterator[InstructionRow | BadRow]:
    """The rows; a BadRow for those that need a chat template."""
    for row in rows:
        if row.has_tools and row.place is not None:
            yield row.place.bad(
                "it has tool calls, which only a chat template can write (data.chat). Leave such rows out"
            )
        else:
            yield row


def tokenize_chats(rows: Sequence[RenderedRow], chat: ChatTemplate, max_prompt_tokens: int) -> list[ChatTokens]:
    """Tokenize prompts and continuations apart, and compare with the tokens of the whole conversation.

    A prompt of more than `max_prompt_tokens` loses its oldest turns, then the beginning of its last text.
    """
    prompts = chat.encode([row.prompt for row in rows])
    responses = chat.encode([row.continuation for row in rows])
    tails = chat.encode([row.tail for row in rows])
    wholes = chat.encode([row.prompt + row.continuation + row.tail for row in rows])
    others = iter(chat.encode([text for row in rows for text in row.others]))
    found = []
    for row, prompt, response, tail, whole in zip(rows, prompts, responses, tails, wholes, strict=True):
        is_long = len(prompt) > max_prompt_tokens
        found.append(
            ChatTokens(
                prompt=_shorten(row, chat, max_prompt_tokens) if is_long else prompt,
                response=response,
                others=[next(others) for _ in row.others],
                is_shortened=is_long,
                differs=[*prompt, *response, *tail] != whole,
            )
        )
    return found


def messages_of(row: InstructionRow, text: str) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """(messages, the response last; tools). A row that is no conversation has one message of the user, `text`."""
    if not row.chat:
        return [{"role": "user", "content": text}, {"role": "assistant", "content": row.response}], None
    messages, tools = read_chat(row.chat)
    if row.answers:  # the last message stands for all answers
        messages[-1] = {"role": "assistant", "content": row.response}
    return messages, tools


def _render(row: InstructionRow, text: str, chat: ChatTemplate) -> RenderedRow:
    messages, tools = messages_of(row, text)
    prompt, continuation, tail = chat.render(messages, tools)
    content = messages[-1].get("content") or ""
    if content not in continuation:
        raise ChatTemplateError(f"the chat template changes the answer {content[:40]!r} to {continuation[:40]!r}")
    before = messages[:-1]
    others = [
        chat.render([*before, {"role": "assistant", "content": answer.text}], tools).continuation
        for answer in row.answers[1:]
    ]
    return RenderedRow(row, text, prompt, continuation, tail, tuple(others))


def _shorten(row: RenderedRow, chat: ChatTemplate, max_tokens: int) -> Tokens:
    messages, tools = messages_of(row.row, row.text)
    try:
        return chat.shorten(messages[:-1], tools, max_tokens)
    except ChatTemplateError as error:
        raise DataError(str(error)) from None
