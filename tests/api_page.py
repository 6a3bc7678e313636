"""Writes the reference in docs/api.md from signatures and docstrings: `python -m tests.api_page docs/api.md`."""

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import cpo_ray
import cpo_ray.objective

BEGIN, END = "<!-- reference: written by `make docs` -->\n", "<!-- end of reference -->\n"
ABSOLUTE = re.compile(
    r"\b(?:pathlib|collections\.abc|typing|torch|transformers\.modeling_utils)\.|\bcpo_ray(?:\.\w+)+\.(?=[A-Z])"
)

ANNOTATION = re.compile(r"'([^']+)'")  # one that is only imported for type checking


def render(page: str) -> str:
    """The page with its reference brought up to date."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    blocks = [block for module in (cpo_ray, cpo_ray.objective) for block in _blocks(module)]
    return f"{before}{BEGIN}\n" + "\n".join(blocks) + f"\n{END}{after}"


def _blocks(module: ModuleType) -> list[str]:
    head = f"### `{module.__name__}`\n"
    return [head, *(_block(f"{module.__name__}.{name}", getattr(module, name)) for name in module.__all__)]


def _block(name: str, item: object) -> str:
    signature = "" if inspect.isclass(item) else ANNOTATION.sub(r"\1", ABSOLUTE.sub("", str(inspect.signature(item))))  # type: ignore[arg-type]
    text = inspect.cleandoc(inspect.getdoc(item) or "")
    return f"#### `{name}`\n\n```text\n{name.rpartition('.')[2]}{signature}\n```\n\n{text}\n"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
