"""The embedded source of real text."""

from pathlib import Path

import pytest

from cpo_ray.data.python_docs import PROMPT_WORDS, RESPONSE_WORDS, python_docs_rows
from cpo_ray.data.rows import InstructionRow
from cpo_ray.errors import DataError

WORDS = [f"word{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(2 * (PROMPT_WORDS + RESPONSE_WORDS) - 1)]
FIRST, SECOND = (
    "A" + " ".join(WORDS[:50]) + ".",
    "B" + " ".join(WORDS[50:]) + ".",
)  # two paragraphs, almost two passages


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty standard library, and no help topics."""
    monkeypatch.setattr("sysconfig.get_path", lambda name: {"stdlib": str(tmp_path)}[name])
    monkeypatch.setattr("pydoc_data.topics.topics", {})
    return tmp_path


def test_the_running_interpreter_has_thousands_of_passages() -> None:
    rows = list(python_docs_rows())
    assert len(rows) > 3000
    assert {"topics", "argparse", "asyncio"} <= {row.category for row in rows}
    for row in rows:
        assert (len(row.instruction.split(" ")), len(row.response.split(" "))) == (PROMPT_WORDS, 1 + RESPONSE_WORDS)
        assert row.response.startswith(" ")
        assert not row.ends
    assert len({row.instruction + row.response for row in rows}) > 0.99 * len(rows)


def test_a_file_is_cut_into_passages_over_its_paragraphs(library: Path) -> None:
    """95 words, in two paragraphs that are wrapped, give one passage; the other 47 words are too few."""
    (library / "module.py").write_text(f'"""{FIRST.replace(" ", chr(10), 3)}\n\n  {SECOND}\n"""\n')
    words = f"{FIRST} {SECOND}".split(" ")
    prompt, response = " ".join(words[:PROMPT_WORDS]), " " + " ".join(words[PROMPT_WORDS:48])
    expected = InstructionRow("python_docs", "module", instruction=prompt, context="", response=response, ends=False)
    assert list(python_docs_rows()) == [expected]


def test_comments_and_nested_docstrings_count_once_and_code_does_not(library: Path) -> None:
    nested = (
        f'class A:\n    def f(self):\n        """{FIRST}"""\n        # {FIRST[:99]}\n        # {FIRST[99:].lstrip()}\n'
    )
    (library / "package").mkdir()
    (library / "package" / "part.py").write_text(nested + f'TEXT = """{SECOND}"""\n')
    (library / "test").mkdir()
    (library / "test" / "skipped.py").write_text(f'"""{SECOND}"""\n')
    (library / "shell.py").write_text(f'"""Shell >>> {SECOND}"""\n#!{SECOND}\n')
    assert [(row.category, row.instruction) for row in python_docs_rows()] == [
        ("package", " ".join(FIRST.split(" ")[:PROMPT_WORDS]))
    ]


def test_a_python_without_its_source_code_is_refused(library: Path) -> None:
    with pytest.raises(DataError, match=r"python_docs finds no documentation.*without the source code"):
        list(python_docs_rows())
