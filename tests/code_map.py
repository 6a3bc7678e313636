"""Writes the map of cpo_ray/ in docs/architecture.md: `python -m tests.code_map docs/architecture.md`.

The page decides the order of packages and files, the modules' docstrings decide the text: the first sentence of each. A new
file is added at the end of its package, and a file that is gone is removed.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cpo_ray"
BEGIN, END = "<!-- map: written by `make docs` -->\n", "<!-- end of map -->\n"
HEADING, ENTRY = re.compile(r"^### `cpo_ray/(.*?)/?`$"), re.compile(r"^- \[`(.+?)`\]")


def render(page: str) -> str:
    """The page with its map brought up to date."""
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    order = read_order(old)
    blocks = [render_package(folder, order.get(folder, [])) for folder in sort_by(folders(), list(order))]
    return f"{before}{BEGIN}\n" + "\n".join(blocks) + f"\n{END}{after}"


def read_order(text: str) -> dict[str, list[str]]:
    """Folder below cpo_ray/ ("" for the top) -> its files, in the order of a map."""
    order: dict[str, list[str]] = {}
    for line in text.splitlines():
        if heading := HEADING.match(line):
            order[heading[1]] = []
        elif (entry := ENTRY.match(line)) and order:
            order[list(order)[-1]].append(entry[1])
    return order


def folders() -> list[str]:
    return [
        "" if file.parent == PACKAGE else file.parent.relative_to(PACKAGE).as_posix() for file in sources("__init__")
    ]


def sources(pattern: str = "*") -> list[Path]:
    return sorted(PACKAGE.rglob(f"{pattern}.py"))


def sort_by(names: list[str], order: list[str]) -> list[str]:
    """`names` in the given order; those that it does not contain come last."""
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def render_package(folder: str, order: list[str]) -> str:
    files = sorted(file.name for file in (PACKAGE / folder).glob("*.py") if file.name != "__init__.py")
    title = "/".join(filter(None, ["cpo_ray", folder]))
    entries = [
        f"- [`{name}`](../{title}/{name}): {first_sentence(PACKAGE / folder / name)}\n"
        for name in sort_by(files, order)
    ]
    return f"### `{title}/`\n\n{first_sentence(PACKAGE / folder / '__init__.py')}\n\n" + "".join(entries)


def first_sentence(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.match(r".*?[.?!](?=\s|$)", paragraph)
    return sentence[0] if sentence else paragraph


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")
