from pathlib import Path

import pytest

from cpo_ray.errors import ConfigError
from cpo_ray.evaluation.templates import DOLLY_TEMPLATE, WIKI_TEMPLATE, fill_template, read_template

PAPER = Path(__file__).parents[3] / "shared/paper/paper.txt"


def test_templates_are_the_papers() -> None:
    assert DOLLY_TEMPLATE.format("Q", "{}", "y") == (
        "For the following query to a chatbot, which response is more helpful?\n Query: Q \n Response A: {} \n"
        " Response B: y \n State only “A” or “B” to indicate which response is more helpful. \n More helpful:"
    )
    assert WIKI_TEMPLATE.format("P", "x", "y") == (
        "For the following prefix, which continuation is better?\n Prefix: P \n Continuation A: x \n"
        " Continuation B: y \n State only “A” or “B” to indicate which continuation is more helpful. \n Better:"
    )


@pytest.mark.skipif(not PAPER.is_file(), reason=f"{PAPER} is not here")
@pytest.mark.parametrize("template", [DOLLY_TEMPLATE, WIKI_TEMPLATE])
def test_templates_are_in_the_paper_verbatim(template: str) -> None:
    assert template.replace("\n", "\\n") in PAPER.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["dolly", "wiki"])
def test_named_placeholders_are_filled_in_order(name: str) -> None:
    built_in = {"dolly": DOLLY_TEMPLATE, "wiki": WIKI_TEMPLATE}[name]
    filled = fill_template(read_template(name), "{response_a}", "{prompt} {}", "\\1 {response_b}")
    assert filled == built_in.format("{response_a}", "{prompt} {}", "\\1 {response_b}")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{prompt} {response_a}", r"\{response_b\} occurs 0 times"),
        ("{prompt} {response_a} {response_b} {prompt}", r"\{prompt\} occurs 2 times"),
        ("{prompt} {response_a} {respones_b}", r"unknown placeholder \{respones_b\}; did you mean \{response_b\}"),
    ],
)
def test_a_file_with_missing_or_unknown_placeholders_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"mine.txt: .*{complaint}"):
        read_template(str(file))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="template doly: neither `dolly` nor `wiki`"):
        read_template("doly")
    (tmp_path / "latin").write_bytes(b"\xe9{prompt}")
    with pytest.raises(ConfigError, match="nor a readable UTF-8 file"):
        read_template(str(tmp_path / "latin"))
