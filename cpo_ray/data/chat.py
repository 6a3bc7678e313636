"""Rows that are conversations: `messages` with roles (OpenAI's format) or `conversations` with senders (ShareGPT's)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

KEYS = ("messages", "conversations")
ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
THOUGHTS = "reasoning_content"
TOOL_ROLES = {"tool": "tool", "function": "tool", "observation": "tool"}


class ChatError(Exception):
    """A conversation that gives no instruction with a response. The message says which message and what to do."""


class Turn(NamedTuple):
    """A message of a conversation."""

    role: str  # a value of ROLES or TOOL_ROLES
    text: str
    calls: tuple[object, ...] = ()  # of tools
    name: str = ""  # of the tool that answers
    thoughts: str = ""  # before the text of an answer, in a field of their own

    @property
    def message(self) -> dict[str, Any]:
        """The turn as a message for a chat template."""
        fields = {"tool_calls": list(self.calls), "name": self.name, THOUGHTS: self.thoughts}
        return {"role": self.role, "content": self.text, **{key: value for key, value in fields.items() if value}}


class Conversation(NamedTuple):
    """A conversation as an instruction and a response."""

    instruction: str
    response: str
    is_multi_turn: bool
    unanswered: int  # messages after the response, which are left out
    turns: tuple[Turn, ...]  # all of it, up to the response

    @property
    def has_tools(self) -> bool:
        """Whether it has tool calls or their results, which only a chat template can write."""
        return any(turn.role == "tool" or turn.calls for turn in self.turns)


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

    An instruction of one user message is its text. Otherwise all messages follow each other, separated by blank lines, each
    after its role: `user: ...`. A system message comes first, without a role.

    strict: user and assistant must alternate, beginning with the user and ending with the assistant, and none may be empty;
    messages of tools and tool calls are read, too. Raises ChatError.
    """
    return _answered(key, _read_turns(record, key, strict=strict))[-1]


def read_every_answer(record: Mapping[str, object], key: str) -> list[Conversation]:
    """Every assistant message as the response to what precedes it, in order. Strict, see `read_conversation`."""
    return _answered(key, _read_turns(record, key, strict=True))


def write_chat(messages: Sequence[Mapping[str, object]], tools: object) -> str:
    """Messages, and the tools that they may use, as JSON for `InstructionRow.chat`."""
    return json.dumps({"messages": [dict(message) for message in messages], "tools": tools}, ensure_ascii=False)


def read_chat(chat: str) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """(messages, tools) of `write_chat`."""
    content = json.loads(chat)
    return content["messages"], content["tools"]


def _read_turns(record: Mapping[str, object], key: str, *, strict: bool) -> list[Turn]:
    messages = record[key]
    if strict and not isinstance(messages, list):
        raise ChatError(f"{key} must be a list of messages, not {type(messages).__name__}")
    listed = messages if isinstance(messages, list) else []
    turns = [_turn(f"{key}[{n}]", message, with_tools=strict) for n, message in enumerate(listed)]
    if strict:
        _check_order(key, turns)
    return turns


def _answered(key: str, turns: Sequence[Turn]) -> list[Conversation]:
    """A Conversation for each answer that follows a message of the user."""
    found = []
    for n, turn in enumerate(turns):
        before = turns[:n]
        if turn.role == "assistant" and any(other.role == "user" for other in before):
            spoken = [other for other in before if other.role != "system"]
            texts = [other.text for other in before if other.role == "system"]
            texts += [spoken[0].text] if len(spoken) == 1 else [f"{other.role}: {other.text}" for other in spoken]
            instruction, rest = "\n\n".join(filter(None, texts)), len(turns) - n - 1
            response = turn.text or (json.dumps(turn.calls, ensure_ascii=False) if turn.calls else "")
            found.append(Conversation(instruction, response, len(spoken) > 1, rest, tuple(turns[: n + 1])))
    if not found:
        raise ChatError(f"{key} has no message of a user followed by one of the assistant; leave such rows out")
    return found


def _check_order(key: str, turns: Sequence[Turn]) -> None:
    """Raise ChatError for turns out of order, or empty ones."""
    before = "system"
    for n, turn in enumerate(turns):
        place = f"{key}[{n}]"
        if turn.role == "system" and n > 0:
            raise ChatError(f"{place} is a system message, which must come first. Move it, or leave such rows out")
        if turn.role == before and turn.role in ("user", "assistant"):
            raise ChatError(
                f"{key}[{n - 1}] and {place} are both of the {turn.role}: user and assistant must alternate. Join them, or "
                "leave such rows out"
            )
        if turn.role == "assistant" and before == "system":
            raise ChatError(
                f"{place} is of the assistant, but a conversation begins with the user. Leave such rows out"
            )
        if turn.role == "tool" and before not in ("assistant", "tool"):
            raise ChatError(
                f"{place} is the answer of a tool, but follows no call of the assistant. Leave such rows out"
            )
        if not turn.text and not turn.calls and turn.role in ("user", "assistant"):
            raise ChatError(f"{place}, of the {turn.role}, is empty. Leave such rows out")
        before = turn.role
    if turns and turns[-1].role != "assistant":
        raise ChatError(
            f"{key} ends with a message of the {turns[-1].role}, {key}[{len(turns) - 1}], which has no answer. Remove it, or "
            "leave such rows out"
        )


def _turn(place: str, message: object, *, with_tools: bool) -> Turn:
    if not isinstance(message, Mapping):
        raise ChatError(f"{place} must be an object with role and content, not {type(message).__name__}")
    role, calls = message.get("role") or message.get("from"), message.get("tool_calls")
    roles = ROLES | TOOL_ROLES if with_tools else ROLES
    if not isinstance(role, str) or role not in roles:
        read = "user, assistant, system and tool" if with_tools else "user, assistant and system"
        also = "" if with_tools else ", no tool calls"
        raise ChatError(f"{place} has the role {role!r}; only messages of {read} are read{also}. Leave such rows out")
    content = message["content"] if "content" in message else message.get("value")
    if isinstance(content, list):
        content = _join_parts(place, content)
    if content is None and calls and with_tools:
        content = ""
    if not isinstance(content, str):
        raise ChatError(f"{place} has no text: its content is {type(content).__name__}. Leave such rows out")
    if calls and not with_tools:
        raise ChatError(f"{place} has tool calls, which are not read. Leave such rows out")
    if calls and not isinstance(calls, list):
        raise ChatError(f"{place} has tool calls that are not a list. Leave such rows out")
    name, thoughts = (str(message.get(key) or "") for key in ("name", THOUGHTS))
    return Turn(roles[role], content.strip(), tuple(map(_call, calls or ())), name, thoughts.strip())


def _call(call: object) -> object:
    """A tool call whose arguments are an object: OpenAI's are JSON as text, which templates would quote again."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        return call
    try:
        arguments = json.loads(function["arguments"]) if isinstance(function.get("arguments"), str) else None
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _join_parts(place: str, parts: list[object]) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ChatError(f"{place} has a part that is not text, and only text is read. Leave such rows out")
        texts.append(part["text"])
    return "".join(texts)
