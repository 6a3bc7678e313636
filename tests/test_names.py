"""One name, one meaning; and only words that a reader can look up."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cpo_ray"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALIAS = re.compile(r"[A-Z]+[a-z]\w*")  # CamelCase, not a CONSTANT and not a TypeVar `T`
# Private or archaic words that once stood for terms of the field, and what to write instead.
WORDS = {
    "shelf": "snapshots", "parcel": "archive", "letter": "message", "anew": "again", "crooked": "invalid",
    "told": "reported", "hears": "receives", "tells": "reports", "plot": "pipeline",
}  # fmt: skip
PATTERN = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)
# Where such a word has its ordinary meaning: a letter of the alphabet, the plot area of a chart.
ORDINARY = {
    "letter": {"config/evaluation.py", "evaluation/judge.py"},
    "plot": {"report/figures.py", "report/svg.py"},
}
DATA = {"data/synthetic_families.py"}  # its literals are the text of the synthetic task, which must not change


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def public_types(path: Path) -> Iterator[str]:
    """Classes, and aliases of types: module-level assignments to a CamelCase name."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names: list[ast.expr] = []
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            names = node.targets
        elif isinstance(node, ast.AnnAssign):
            names = [node.target]
        yield from (name.id for name in names if isinstance(name, ast.Name) and ALIAS.fullmatch(name.id))


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment and string literal, docstrings and the text of f-strings included."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_no_two_public_types_share_a_name():
    places = defaultdict(list)
    for path in SOURCES:
        for name in public_types(path):
            if not name.startswith("_"):
                places[name].append(relative(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


@pytest.mark.parametrize("path", [path for path in SOURCES if relative(path) not in DATA], ids=relative)
def test_prose_uses_plain_words(path):
    words = [(line, word.lower()) for line, text in prose(path) for word in PATTERN.findall(text)]
    found = [(line, word, WORDS[word]) for line, word in words if relative(path) not in ORDINARY.get(word, ())]
    assert found == [], f"{relative(path)}: (first line of the text, word, what to write instead)"
