"""Stage `data` for chat models: rows of every kind under the tokenizer's template."""

from pathlib import Path
from typing import Any

import pytest

from cpo_ray.artifacts import Summary, read_jsonl, read_table
from cpo_ray.config.loading import parse_config
from cpo_ray.data.examples import prepare_examples
from cpo_ray.data.tokenization import load_tokenizer
from cpo_ray.errors import ConfigError, DataError
from tests.data.chat_families import CHATML, FAMILIES, IM, Family
from tests.data.test_chat_template import CALL, own_tokens, turns
from tests.data.test_layouts import Row, write

SIZES = {"train_rows": 6, "validation_rows": 1, "test_rows": 1}
ASKED = [f"What is 2 + {n}?" for n in range(8)]
ANSWERED = [f"It is {n + 2}." for n in range(8)]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name, family in FAMILIES.items():
        family.save(folder / name)
    return folder


def prepare(rows: list[Row], out: Path, tokenizer: Path, **data: Any) -> Summary:
    out.mkdir(parents=True, exist_ok=True)
    path = str(write(out / "rows.jsonl", rows))
    tree = {"path": path, "tokenizer": {"path": str(tokenizer)}, **SIZES, **data}
    return prepare_examples(parse_config({"name": "x", "data": tree}, "x"), out / "out")


def table_of(out: Path, *splits: str) -> list[Row]:
    names = splits or ("train", "validation", "test")
    return [row for name in names for row in read_table(out / "out" / name).to_pylist()]


def talks(system: str = "") -> list[Row]:
    return [{"messages": turns(*pair, system=system)} for pair in zip(ASKED, ANSWERED, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_examples_are_the_templates_own_tokens(name: str, families: Path, tmp_path: Path) -> None:
    system = "Be brief." if FAMILIES[name].has_system else ""
    prepare(talks(system), tmp_path, families / name)
    own, options = load_tokenizer(str(families / name)), FAMILIES[name].options
    saved = load_tokenizer(str(tmp_path / "out/tokenizer"))
    for row in table_of(tmp_path):
        messages = turns(ASKED[ANSWERED.index(row["response"])], row["response"], system=system)
        whole = own_tokens(own, messages, generation=False, **options)
        assert row["prompt_ids"] == own_tokens(own, messages[:-1], generation=True, **options)
        assert [*row["prompt_ids"], *row["response_ids"]] == whole[: len(row["prompt_ids"]) + len(row["response_ids"])]
        assert row["response_ids"][-1] == saved.eos_token_id
        assert row["prompt"] == "\n\n".join(filter(None, [system, messages[-2]["content"]]))


def test_a_row_without_messages_is_one_message_of_the_user(families: Path, tmp_path: Path) -> None:
    """Every layout gives the files of its twin in Dolly's layout, with a chat template too."""
    rows = [
        {"instruction": a, "context": "", "response": b, "category": ""} for a, b in zip(ASKED, ANSWERED, strict=True)
    ]
    prepare(rows, tmp_path / "dolly", families / "llama3", source="instructions")
    prepare(talks(), tmp_path / "talks", families / "llama3")
    assert table_of(tmp_path / "dolly") == table_of(tmp_path / "talks")


def test_a_template_in_the_configuration_is_used_instead(families: Path, tmp_path: Path) -> None:
    prepare(talks(), tmp_path, families / "chatml", template="Q: {instruction}\n")
    row = table_of(tmp_path)[0]
    assert row["prompt"].startswith("Q: What")
    assert load_tokenizer(str(tmp_path / "out/tokenizer")).eos_token == "<|endoftext|>"
    assert row["prompt_ids"] == load_tokenizer(str(families / "chatml"))(row["prompt"])["input_ids"]


def test_every_answer_is_a_row_and_those_of_a_conversation_are_in_one_split(families: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": turns(asked, answered, "Sure?", "Yes.", system="Be brief.")}
        for asked, answered in zip(ASKED, ANSWERED, strict=True)
    ]
    sizes = {"train_rows": 10, "validation_rows": 2, "test_rows": 4}
    prepare(rows, tmp_path / "every", families / "chatml", chat={"turns": "every"}, **sizes)
    for split, count in (("train", 10), ("validation", 2), ("test", 4)):
        found = table_of(tmp_path / "every", split)
        assert len(found) == count
        assert sum(row["response"] == "Yes." for row in found) == count // 2
        firsts = {row["response"] for row in found if row["response"] != "Yes."}
        assert {
            row["prompt"].split("assistant: ")[1].split("\n")[0] for row in found if row["response"] == "Yes."
        } == firsts
    prepare(rows, tmp_path / "last", families / "chatml")
    last = {tuple(row["prompt_ids"]) for row in table_of(tmp_path / "last")}
    assert {tuple(row["prompt_ids"]) for row in table_of(tmp_path / "every") if row["response"] == "Yes."} == last


def test_ranked_answers_are_rendered_like_the_response(families: Path, tmp_path: Path) -> None:
    """The same prompt as text, as messages, and before both answers."""
    texts = {"prompt": "What is 2 + 3?", "chosen": "It is 5.", "rejected": "It is 6."}
    as_turns = {"chosen": turns("What is 2 + 3?", "It is 5."), "rejected": turns("What is 2 + 3?", "It is 6.")}
    sizes = {"train_rows": 1, "validation_rows": 0, "test_rows": 1}
    other = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
    tables = []
    for name, row in (("texts", texts), ("turns", as_turns)):
        prepare([row, other], tmp_path / name, families / "mistral", source="preferences", **sizes)
        tables.append(table_of(tmp_path / name))
    assert tables[0] == tables[1]
    tokenizer = load_tokenizer(str(families / "mistral"))
    (row,) = (row for row in tables[0] if row["response"] == "It is 5.")
    assert tokenizer.decode(row["prompt_ids"]) == "<s>[INST] What is 2 + 3? [/INST]"
    assert [tokenizer.decode(ids) for ids in (row["response_ids"], *row["answer_ids"])] == [
        " It is 5.</s>",
        " It is 6.</s>",
    ]


def test_tool_calls_need_a_chat_template(families: Path, tmp_path: Path) -> None:
    """OpenAI's arguments are JSON as text, which a template would quote again."""
    call = CALL | {"function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
    tool = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "5"}]
    row = {"messages": [*turns("What is 2 + 3?"), *tool, *turns("", "It is 5.")[1:]], "tools": [{"name": "add"}]}
    prepare([*talks()[:7], row], tmp_path / "chat", families / "tools")
    (found,) = (row for row in table_of(tmp_path / "chat") if "Tools" in decoded(row, families / "tools"))
    assert '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>' in decoded(found, families / "tools")
    with pytest.raises(DataError, match=r"rows\.jsonl:8: it has tool calls, which only a chat template can write"):
        prepare([*talks()[:7], row], tmp_path / "plain", families / "tools", chat={"use": "never"})


def decoded(row: Row, tokenizer: Path) -> str:
    return str(load_tokenizer(str(tokenizer)).decode(row["prompt_ids"]))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (turns("Why?"), r"ends with a message of the user, messages\[0\], which has no answer"),
        (turns("Why?", "So.", "Sure?"), r"ends with a message of the user, messages\[2\]"),
        ([*turns("Why?"), *turns("Why?", "So.")], r"messages\[0\] and messages\[1\] are both of the user"),
        (turns("Why?", " "), r"messages\[1\], of the assistant, is empty"),
        ([{"role": "narrator", "content": "x"}, *turns("Why?", "So.")], r"messages\[0\] has the role 'narrator'"),
        (
            [*turns("Why?"), {"role": "system", "content": "x"}],
            r"messages\[1\] is a system message, which must come first",
        ),
        (turns("Why?", "So.", system="Be brief."), r"cannot render this conversation \(no role system\)"),
        (turns("What is <end_of_turn>?", "A token."), "spells '<end_of_turn>', which is a special token"),
    ],
)
def test_a_conversation_that_is_not_read_is_refused_or_left_out_and_counted(
    messages: list[Row], reason: str, families: Path, tmp_path: Path
) -> None:
    rows = [*talks(), {"messages": messages}]
    with pytest.raises(DataError, match=rf"rows\.jsonl:9: .*{reason}"):
        prepare(rows, tmp_path, families / "gemma")
    assert prepare(rows, tmp_path, families / "gemma", on_bad_row="quarantine")["quarantined_rows"] == 1
    (bad,) = read_jsonl(tmp_path / "out/quarantine.jsonl")
    assert bad["line"] == 9


def test_a_boundary_within_a_token_of_the_template_is_counted_and_said(tmp_path: Path) -> None:
    """The prompt ends with a space, which the template's own tokenization joins with the answer's first word."""
    template = CHATML.replace("{{ m.role }}\n", "{{ m.role }}: ").replace("assistant\n", "assistant: ")
    Family(template, "<|im_end|>", IM).save(tmp_path / "tokenizer")
    summary = prepare(talks(), tmp_path, tmp_path / "tokenizer")
    assert summary["other_chat_boundaries"] == 8
    assert "of 8 of 8 conversations the chat template's own tokenization is another one" in summary["warnings"][0]


def test_a_long_conversation_is_shortened_within_the_template_and_counted(families: Path, tmp_path: Path) -> None:
    rows = talks("Be brief.")
    rows[0] = {"messages": turns("Why is the sky blue? " * 9, "Light.", *turns_of(rows[0]), system="Be brief.")}
    summary = prepare(rows, tmp_path, families / "chatml", max_prompt_tokens=40)
    assert summary["truncated_prompts"] == 1
    assert len({decoded(row, families / "chatml").count("<|im_start|>") for row in table_of(tmp_path)}) == 1
    with pytest.raises(DataError, match="max_prompt_tokens 8 has no room for what the chat template writes"):
        prepare(rows, tmp_path / "short", families / "chatml", max_prompt_tokens=8)


def turns_of(row: Row) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] != "system"]


def test_a_chat_template_needs_a_tokenizer_and_answers() -> None:
    with pytest.raises(ConfigError, match=r"chat\.use: always needs a tokenizer with a chat template"):
        parse_config({"name": "x", "data": {"path": "x.jsonl", "chat": {"use": "always"}}}, "x")
    data = {"source": "text", "path": "x.txt", "chat": {"use": "always"}, "tokenizer": {"path": "y"}}
    with pytest.raises(ConfigError, match=r"chat\.use: always needs rows with answers, but source: text has passages"):
        parse_config({"name": "x", "data": data}, "x")
    for given, expected in (({}, "auto"), ({"template": "{instruction}"}, "never")):
        assert parse_config({"name": "x", "data": {"path": "x.jsonl", **given}}, "x").data.chat.use == expected
    both = {"template": "{instruction}", "chat": {"use": "auto"}}
    assert parse_config({"name": "x", "data": {"path": "x.jsonl", **both}}, "x").data.chat.use == "auto"
