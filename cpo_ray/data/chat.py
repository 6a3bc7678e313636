"""Rows that are conversations: `messages` with roles (OpenAI's format) or `conversations` with senders (ShareGPT's)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

KEYS = ("messages", "conversations")
ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system", "developer": "system",
}  # fmt: skip


class ChatError(Exception):
    """A conversation that gives no instruction with a response. The message says which message and what to do."""


class Turn(NamedTuple):
    """A message of a conversation."""

    role: str  # a value of ROLES
    text: str


class Conversation(NamedTuple):
    """A conversation as an instruction and a response."""

    instruction: str
    response: str
    is_multi_turn: bool
    unanswered: int  # messages after the response, which are left out


def find_messages(record: Mapping[str, object]) -> str | None:
    """The key of the record's messages, if it has any."""
    return next((key for key in KEYS if isinstance(record.get(key), list)), None)


def with_system(record: Mapping[str, object], key: str) -> Mapping[str, object]:
    """The record with its field `system`, if it is text, as the first message of `key`, unless that has one already."""
    system, messages = record.get("system"), record.get(key)
    if not isinstance(system, str) or not system.strip() or not isinstance(messages, list):
        return record
    first = messages[0] if messages and isinstance(messages[0], Mapping) else {}
    has_one = ROLES.get(str(first.get("role") or first.get("from"))) == "system"
    return record if has_one else {**record, key: [{"role": "system", "content": system}, *messages]}


def join_completion(record: Mapping[str, object], prompt: str, completion: str) -> Mapping[str, object]:
    """The record with a completion that is messages, or text, appended to the messages of its prompt."""
    before, after = record.get(prompt), record.get(completion)
    if not isinstance(before, list) or after is None:
        return record
    return {
        **record,
        prompt: [*before, *(after if isinstance(after, list) else [{"role": "assistant", "content": after}])],
    }


def read_conversation(record: Mapping[str, object], key: str, *, strict: bool = False) -> Conversation:
    """The last assistant message as the response, and what precedes it as the instruction.

    strict: user and assistant must alternate, beginning with the user and ending with the assistant, and none may be empty.

    An instruction of one user message is its text. Otherwise all messages follow each other, separated by blank lines, each
    after its role: `user: ...`. A system message comes first, without a role. Raises ChatError.
    """
    messages = record[key]
    if strict and not isinstance(messages, list):
        raise ChatError(f"{key} must be a list of messages, not {type(messages).__name__}")
    turns = [_turn(f"{key}[{n}]", message) for n, message in enumerate(messages if isinstance(messages, list) else [])]
    if strict:
        _check_order(key, turns)
    last = max((n for n, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    before = turns[:last] if last >= 0 else []
    if not any(turn.role == "user" for turn in before):
        raise ChatError(f"{key} has no message of a user followed by one of the assistant; leave such rows out")
    spoken = [turn for turn in before if turn.role != "system"]
    texts = [turn.text for turn in before if turn.role == "system"]
    texts += [spoken[0].text] if len(spoken) == 1 else [f"{turn.role}: {turn.text}" for turn in spoken]
    return Conversation("\n\n".join(filter(None, texts)), turns[last].text, len(spoken) > 1, len(turns) - last - 1)


def _check_order(key: str, turns: Sequence[Turn]) -> None:
    """Raise ChatError for turns out of order, or empty ones."""
    before = "system"
    for n, turn in enumerate(turns):
        if turn.role == "system" and n > 0:
            raise ChatError(f"{key}[{n}] is a system message, which must come first. Move it, or leave such rows out")
        if turn.role == before != "system":
            raise ChatError(
                f"{key}[{n - 1}] and {key}[{n}] are both of the {turn.role}: user and assistant must alternate. Join them, or "
                "leave such rows out"
            )
        if turn.role == "assistant" and before == "system":
            raise ChatError(
                f"{key}[{n}] is of the assistant, but a conversation begins with the user. Leave such rows out"
            )
        if not turn.text and turn.role != "system":
            raise ChatError(f"{key}[{n}], of the {turn.role}, is empty. Leave such rows out")
        before = turn.role if turn.role != "system" else before
    if turns and turns[-1].role == "user":
        raise ChatError(
            f"{key} ends with a message of the user, {key}[{len(turns) - 1}], which has no answer. Remove it, or leave "
            "such rows out"
        )


def _turn(place: str, message: object) -> Turn:
    if not isinstance(message, Mapping):
        raise ChatError(f"{place} must be an object with role and content, not {type(message).__name__}")
    role = message.get("role") or message.get("from")
    if not isinstance(role, str) or role not in ROLES:
        raise ChatError(
            f"{place} has the role {role!r}; only messages of user, assistant and system are read, no tool calls. Leave such "
            "rows out"
        )
    content = message["content"] if "content" in message else message.get("value")
    if isinstance(content, list):
        content = _join_parts(place, content)
    if not isinstance(content, str):
        raise ChatError(f"{place} has no text: its content is {type(content).__name__}. Leave such rows out")
    if message.get("tool_calls"):
        raise ChatError(f"{place} has tool calls, which are not read. Leave such rows out")
    return Turn(ROLES[role], content.strip())


def _join_parts(place: str, parts: list[object]) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ChatError(f"{place} has a part that is not text, and only text is read. Leave such rows out")
        texts.append(part["text"])
    return "".join(texts)
