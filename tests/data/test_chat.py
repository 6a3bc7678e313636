import pytest

from cpo_ray.data.chat import ChatError, find_messages, read_conversation


def messages(*turns: tuple[str, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def read(*turns: tuple[str, object]) -> tuple[str, str]:
    conversation = read_conversation(messages(*turns), "messages")
    return conversation.instruction, conversation.response


def test_a_single_turn_is_instruction_and_response() -> None:
    assert read(("user", " Why? "), ("assistant", "So.")) == ("Why?", "So.")
    assert read(("system", "Be brief."), ("user", "Why?"), ("assistant", "So.")) == ("Be brief.\n\nWhy?", "So.")
    assert read(("developer", ""), ("user", "Why?"), ("assistant", "So.")) == ("Why?", "So.")


def test_several_turns_are_joined_with_their_roles() -> None:
    turns = ("user", "Why?"), ("assistant", "So."), ("user", "Really?"), ("assistant", "Yes.")
    assert read(("system", "Be brief."), *turns) == (
        "Be brief.\n\nuser: Why?\n\nassistant: So.\n\nuser: Really?", "Yes."
    )  # fmt: skip
    conversation = read_conversation(messages(*turns, ("user", "Sure?")), "messages")
    assert (conversation.is_multi_turn, conversation.unanswered, conversation.response) == (True, 1, "Yes.")


def test_lists_of_text_parts_and_senders_are_read() -> None:
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]
    assert read(("user", parts), ("assistant", "So.")) == ("Why?", "So.")
    shared = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}
    assert find_messages(shared) == "conversations"
    assert read_conversation(shared, "conversations")[:2] == ("Why?", "So.")
    assert find_messages({"messages": "text"}) is None


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "no message of a user followed by one of the assistant"),
        ([("user", "Why?")], "no message of a user followed by one of the assistant"),
        ([("assistant", "So."), ("user", "Why?")], "no message of a user"),
        (
            [("user", "Why?"), ("tool", "4"), ("assistant", "So.")],
            r"messages\[1\] has the role 'tool'.* Leave such rows out",
        ),
        ([("user", None), ("assistant", "So.")], r"messages\[0\] has no text: its content is NoneType"),
        ([("user", [{"type": "image_url"}]), ("assistant", "So.")], r"messages\[0\] has a part that is not text"),
        ([("user", "Why?"), (["a"], "So.")], r"messages\[1\] has the role \['a'\]"),
    ],
)
def test_what_is_not_read_is_named(turns: list[tuple[str, object]], reason: str) -> None:
    with pytest.raises(ChatError, match=reason):
        read(*turns)


def test_a_message_that_is_no_object_or_calls_a_tool_is_named() -> None:
    with pytest.raises(ChatError, match=r"messages\[0\] must be an object with role and content, not str"):
        read_conversation({"messages": ["Why?"]}, "messages")
    call = {"role": "assistant", "content": "So.", "tool_calls": [{}]}
    with pytest.raises(ChatError, match=r"messages\[0\] has tool calls"):
        read_conversation({"messages": [call]}, "messages")
