import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.data.template import apply_template, check_template
from cpo_ray.errors import ConfigError

TEMPLATE = "### Instruction:\n{instruction}\n### Input: {context}\n### Response:\n"


def test_row_with_context_fills_both_places() -> None:
    assert apply_template("{instruction}\n{context}\n", "Sum up.", "A tale.") == "Sum up.\nA tale.\n"


def test_row_without_context_loses_the_line_that_holds_it() -> None:
    assert apply_template("{instruction}\n{context}\n", "Say hi.", "") == "Say hi.\n"
    assert apply_template(TEMPLATE, "Say hi.", "") == "### Instruction:\nSay hi.\n### Response:\n"


@given(st.text(), st.text(min_size=1))
def test_texts_pass_through_unchanged_whatever_braces_they_hold(instruction: str, context: str) -> None:
    assert apply_template(TEMPLATE, instruction, context) == (
        f"### Instruction:\n{instruction}\n### Input: {context}\n### Response:\n"
    )


@pytest.mark.parametrize("text", ["{context}", "{instruction}", "{0}", "{", "}}", "{a.__class__}", "\\1", "%s"])
def test_placeholders_in_a_text_are_text(text: str) -> None:
    assert apply_template("{instruction}|\n{context}|", text, text) == f"{text}|\n{text}|"
    assert apply_template("{instruction}|\n{context}|", text, "") == f"{text}|\n"


def test_other_braces_of_the_template_stay() -> None:
    assert apply_template('{"q": "{instruction}"}', "Why?", "") == '{"q": "Why?"}'


def test_template_that_would_lose_the_instruction_is_refused() -> None:
    check_template(TEMPLATE)
    with pytest.raises(ConfigError, match="share the line"):
        check_template("{instruction} {context}\n")
