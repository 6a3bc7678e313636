import re
import subprocess
from pathlib import Path

import pytest
from pydantic import BaseModel

from cpo_ray.config import RunConfig
from cpo_ray.config.reference_page import render_reference
from cpo_ray.stages import STAGES
from tests.code_map import read_order, render

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ARCHITECTURE = ROOT / "docs" / "architecture.md"
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
SOURCE_PATH = re.compile(r"`((?:cpo_ray|tests)/[\w/.]+)`")


def test_the_configuration_page_is_current():
    current = (ROOT / "docs" / "configuration.md").read_text()
    assert current == render_reference(), "docs/configuration.md is stale: run `make docs`"


def leaf_keys(model, prefix=""):
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaf_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def test_every_key_is_documented_where_it_is_declared():
    page = render_reference()
    for key, field in leaf_keys(RunConfig):
        assert field.description, f"{key} has no docstring"
        assert f"| `{key}` |" in page


def test_bounds_and_execution_marks_reach_the_page():
    page = render_reference()
    assert "| `objective.beta` | number > 0 | `5.0` |" in page
    assert "| `data.tokenizer.vocabulary_size` | integer >= 300, <= 500000 | `1024` |" in page
    assert "| `name` | text matching `^[a-z0-9][a-z0-9_-]*$` | *required* |" in page
    assert re.search(r"`training\.checkpoint_every`.*\*execution\*", page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_hold(page):
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_direct_dependency_is_justified():
    page = (ROOT / "docs" / "dependencies.md").read_text()
    for file in (ROOT / "requirements").glob("*.in"):
        for line in file.read_text().splitlines():
            name = re.match(r"[A-Za-z][A-Za-z0-9_.-]*", line)
            if name:
                assert f"`{name[0]}`" in page, f"{name[0]} of {file.name} is not in docs/dependencies.md"


def test_the_map_is_current():
    page = ARCHITECTURE.read_text()
    assert page == render(page), "the map in docs/architecture.md is stale: run `make docs`"


def test_the_map_names_every_module():
    order = read_order(ARCHITECTURE.read_text())
    named = {Path(folder, name).as_posix() for folder, names in order.items() for name in names}
    package = ROOT / "cpo_ray"
    assert named == {file.relative_to(package).as_posix() for file in package.rglob("*.py")} - {
        (Path(folder) / "__init__.py").as_posix() for folder in order
    }


def test_every_file_that_the_architecture_names_exists():
    for path in SOURCE_PATH.findall(ARCHITECTURE.read_text()):
        assert (ROOT / path).exists(), f"docs/architecture.md names {path}"


def test_the_readme_begins_with_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert readme.index("make demo") < readme.index("make test") < 1000


def test_the_architecture_shows_every_stage():
    page = ARCHITECTURE.read_text()
    for stage in STAGES:
        assert stage in page


@pytest.mark.parametrize("script", ["Makefile", ".ci/run"])
def test_scripts_name_no_machine(script):
    text = (ROOT / script).read_text()
    assert not re.search(r"/(home|root|work|opt|Users)/", text)


def test_the_ci_script_is_sound():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_make_names_a_wrong_python_in_one_line():
    seen = subprocess.run(
        ["make", "check", "PYTHON=no-such-python"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert seen.returncode != 0
    assert seen.stderr.splitlines()[0].startswith("Python 3.11 is missing: install python3.11")
