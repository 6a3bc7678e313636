"""Passages of the Python documentation, from the standard library of the running interpreter: real text without a download.

The text is in docstrings, in comments and in the help topics of `pydoc`. It is part of Python, under the PSF License Version 2.
Other versions of Python have other text.
"""

import ast
import re
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from cpo_ray.data.rows import InstructionRow
from cpo_ray.errors import DataError

PROMPT_WORDS = 12
RESPONSE_WORDS = 36
MIN_CHARACTERS = 60  # of a paragraph: shorter ones are titles and labels
LETTER_SHARE = 0.85  # of letters and spaces: tables, code and signatures have fewer
EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data"})
COMMENT = re.compile(r"\s*#+ ?(?!!)(.*)")
BLOCKS = ("body", "handlers", "cases", "orelse", "finalbody")  # the parts of a statement that hold statements
BLANK_LINES = re.compile(r"\n\s*\n")


def python_docs_rows() -> Iterator[InstructionRow]:
    """The prose of each file and help topic, cut into consecutive passages of PROMPT_WORDS + RESPONSE_WORDS words.

    The first PROMPT_WORDS words of a passage are the instruction, the others, with their leading space, the response. It does
    not end there: the text goes on. The rest of a text, shorter than a passage, is dropped. A paragraph that occurs more than
    once is used once. The category is the top-level module or package. Raises DataError if the interpreter comes without the
    source code of its standard library.
    """
    length = PROMPT_WORDS + RESPONSE_WORDS
    seen: set[str] = set()
    found = False
    for category, parts in _texts(Path(sysconfig.get_path("stdlib"))):
        words: list[str] = []
        for paragraph in (" ".join(text.split()) for part in parts for text in BLANK_LINES.split(part)):
            if _is_prose(paragraph) and paragraph not in seen:
                seen.add(paragraph)
                words += paragraph.split(" ")
        for start in range(0, len(words) - length + 1, length):
            prompt, rest = words[start : start + PROMPT_WORDS], words[start + PROMPT_WORDS : start + length]
            found = True
            yield InstructionRow("python_docs", category, " ".join(prompt), "", f" {' '.join(rest)}", ends=False)
    if not found:
        raise DataError(
            "data.source: python_docs finds no documentation: this Python comes without the source code of its standard "
            "library. Install Python with it, or choose another data.source."
        )


def _texts(library: Path) -> Iterator[tuple[str, list[str]]]:
    """(category, texts) of each help topic and each file, in a fixed order. A file's texts: docstrings, blocks of comments."""
    from pydoc_data.topics import topics

    yield from (("topics", [text]) for _, text in sorted(topics.items()))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if EXCLUDED.isdisjoint(parts):
            source = path.read_text(encoding="utf-8", errors="replace")
            yield parts[0].removesuffix(".py"), [*_docstrings(source), *_comments(source)]


def _docstrings(source: str) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of the library's own string escapes
        tree = ast.parse(source)
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and its statements, in the order of `ast.walk`. Most nodes are in expressions, which have no docstrings."""
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        yield node
        for block in BLOCKS:
            waiting.extend(getattr(node, block, ()))


def _comments(source: str) -> Iterator[str]:
    """Consecutive lines that are only a comment, without their `#`."""
    block: list[str] = []
    for line in [*source.splitlines(), ""]:
        comment = COMMENT.fullmatch(line) if "#" in line else None
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
