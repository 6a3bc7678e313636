"""Paragraphs of the Python documentation, from the standard library of the running interpreter: real text without a download.

The text is in docstrings, in comments and in the help topics of `pydoc`. It is part of Python, under the PSF License Version 2.
Other versions of Python have other text.
"""

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from cpo_ray.data.rows import InstructionRow
from cpo_ray.errors import DataError

PROMPT_WORDS = 8
MIN_CHARACTERS = 120  # of a paragraph: a shorter one leaves little to continue
LETTER_SHARE = 0.85  # of letters and spaces: tables, code and signatures have fewer
EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data"})
COMMENT = re.compile(r"\s*#+ ?(?!!)(.*)")
BLANK_LINES = re.compile(r"\n\s*\n")


def python_docs_rows() -> Iterator[InstructionRow]:
    """A row per paragraph: the first PROMPT_WORDS words are the instruction, the rest, with its leading space, the response.

    The category is the top-level module or package. A paragraph that occurs more than once gives one row. Raises DataError if
    the interpreter comes without the source code of its standard library.
    """
    seen: set[str] = set()
    for category, text in _texts(Path(sysconfig.get_path("stdlib"))):
        for part in BLANK_LINES.split(text):
            paragraph = " ".join(part.split())
            if _is_prose(paragraph) and paragraph not in seen:
                seen.add(paragraph)
                words = paragraph.split(" ")
                prompt, rest = " ".join(words[:PROMPT_WORDS]), " ".join(words[PROMPT_WORDS:])
                yield InstructionRow("python_docs", category, instruction=prompt, context="", response=f" {rest}")
    if not seen:
        raise DataError(
            "data.source: python_docs finds no documentation: this Python comes without the source code of its standard "
            "library. Install Python with it, or choose another data.source."
        )


def _texts(library: Path) -> Iterator[tuple[str, str]]:
    """(category, text) of each help topic, docstring and block of comments, in a fixed order."""
    from pydoc_data.topics import topics

    yield from (("topics", text) for _, text in sorted(topics.items()))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if EXCLUDED.isdisjoint(parts):
            source = path.read_text(encoding="utf-8", errors="replace")
            category = parts[0].removesuffix(".py")
            yield from ((category, text) for text in (*_docstrings(source), *_comments(source)))


def _docstrings(source: str) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of the library's own string escapes
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def _comments(source: str) -> Iterator[str]:
    """Consecutive lines that are only a comment, without their `#`."""
    block: list[str] = []
    for line in [*source.splitlines(), ""]:
        comment = COMMENT.fullmatch(line)
        if comment:
            block.append(comment[1])
        elif block:
            yield "\n".join(block)
            block = []


def _is_prose(paragraph: str) -> bool:
    if len(paragraph) < MIN_CHARACTERS or not paragraph[0].isupper() or paragraph[-1] not in ".!?:":
        return False
    letters = sum(char.isalpha() or char == " " for char in paragraph)
    return letters >= LETTER_SHARE * len(paragraph) and ">>>" not in paragraph
