"""The embedded source of real text."""

from collections import Counter
from pathlib import Path

import pytest

from cpo_ray.data import python_docs
from cpo_ray.data.python_docs import PROMPT_WORDS, python_docs_rows
from cpo_ray.data.rows import InstructionRow
from cpo_ray.errors import DataError

FIRST, SECOND = (
    "This paragraph of a docstring has enough plain words",
    "to become a row of the embedded source, with a full stop at its end.",
)
PROSE = f"{FIRST} {SECOND}"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty standard library, and no help topics."""
    monkeypatch.setattr("sysconfig.get_path", lambda name: {"stdlib": str(tmp_path)}[name])
    monkeypatch.setattr("pydoc_data.topics.topics", {})
    return tmp_path


def test_the_running_interpreter_has_thousands_of_distinct_paragraphs() -> None:
    rows = list(python_docs_rows())
    assert len(rows) > 3000
    assert max(Counter((row.instruction, row.response) for row in rows).values()) == 1
    assert {"topics", "argparse", "asyncio"} <= {row.category for row in rows}
    assert all(len(row.instruction.split(" ")) == PROMPT_WORDS and row.response.startswith(" ") for row in rows)
    assert all(len(row.instruction + row.response) >= python_docs.MIN_CHARACTERS for row in rows)


def test_a_paragraph_is_a_prompt_of_eight_words_and_the_rest(library: Path) -> None:
    (library / "module.py").write_text(f'"""A title.\n\n{FIRST}\n{SECOND}\n"""\n')
    assert list(python_docs_rows()) == [
        InstructionRow(
            source="python_docs",
            category="module",
            instruction="This paragraph of a docstring has enough plain",
            context="",
            response=PROSE.removeprefix("This paragraph of a docstring has enough plain"),
        )
    ]


def test_comments_and_nested_docstrings_count_once_and_code_does_not(library: Path) -> None:
    nested = f'class A:\n    def f(self):\n        """{PROSE}"""\n        # {FIRST}\n        # {SECOND}\n'
    (library / "package").mkdir()
    (library / "package" / "part.py").write_text(nested + f'TEXT = """{PROSE} It is no docstring."""\n')
    (library / "test").mkdir()
    (library / "test" / "skipped.py").write_text(f'"""{PROSE} It is in a test."""\n')
    example = ">>> " + PROSE
    (library / "shell.py").write_text(f'"""{example}"""\n#!{PROSE} A shebang.\n')
    assert [(row.category, row.instruction + row.response) for row in python_docs_rows()] == [("package", PROSE)]


def test_a_python_without_its_source_code_is_refused(library: Path) -> None:
    with pytest.raises(DataError, match=r"python_docs finds no documentation.*without the source code"):
        list(python_docs_rows())
