"""The house's direction of imports, held by reading the sources."""

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cpo_ray"
SOURCES = sorted(PACKAGE.rglob("*.py"))
WINGS = {"data", "sampling", "training", "serving", "evaluation"}
BASE = {"errors", "records", "config", "artifacts", "files", "monitoring", "cluster"}
# What each room may import besides itself. A room that is not named here is a mistake.
ALLOWED = {
    "errors": set(),
    "records": {"errors"},
    "config": {"records", "errors"},
    "artifacts": {"records", "errors"},
    "files": {"errors"},
    "monitoring": {"artifacts", "config", "errors"},
    "cluster": {"config", "monitoring", "errors"},
    "inference": {"artifacts", "config", "cluster", "errors"},
    "objective": {"records", "errors"},
    "data": BASE,
    "sampling": BASE | {"inference", "objective"},
    "training": BASE | {"inference", "objective"},
    "serving": BASE | {"inference"},
    "evaluation": BASE | {"inference", "objective"},
    "report": BASE | {"evaluation"},
    "planning": {"artifacts", "cluster", "config", "errors"},
    "checks": {"artifacts", "config", "errors", "inference", "objective"},
    "run_directory": BASE,
    "submission": BASE | {"run_directory", "stages"},
    "stages": BASE | WINGS | {"checks", "inference", "report", "run_directory"},
    "pipeline": {"config", "errors", "monitoring", "run_directory", "stages"},
    "commands": BASE
    | WINGS
    | {"inference", "report", "planning", "checks", "submission", "run_directory", "stages", "pipeline"},
    "cli": {"commands", "config", "monitoring", "pipeline", "run_directory"},
    "__init__": {"artifacts", "commands", "config", "evaluation", "pipeline", "run_directory", "serving"},
}
# Heavy or restricted packages, and the only files that may import them.
GATES = {
    "deepspeed": {"training/deepspeed_engine.py"},
    "mauve": {"evaluation/mauve.py"},
    "harper": {"evaluation/grammar.py"},
    "peft": {"objective/adapters.py"},
    "bitsandbytes": {"objective/quantization.py"},
    "mwxml": {"data/wikidump.py"},
    "mwparserfromhell": {"data/wikitext.py"},
}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    """`sampling` for cpo_ray/sampling/vllm_sampler.py, `errors` for cpo_ray/errors.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            modules.add(node.module or "")
            modules |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "cpo_ray"}
    return modules


def imported_rooms(path: Path) -> set[str]:
    parts = [module.split(".") for module in imported_modules(path)]
    rooms = {part[1] for part in parts if part[0] == "cpo_ray" and len(part) > 1}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_run_one_way(path):
    assert imported_rooms(path) <= ALLOWED[room(path)] | {room(path)}


def test_the_rules_name_the_rooms_that_exist_and_allow_no_circle():
    assert set(ALLOWED) == set(map(room, SOURCES))
    for wing in WINGS:
        assert not ALLOWED[wing] & (WINGS | {"report", "stages"}), wing
    graphlib.TopologicalSorter(ALLOWED).prepare()


def test_nothing_below_the_command_line_imports_it():
    assert [relative(path) for path in SOURCES if "cli" in imported_rooms(path)] == []


def test_jobs_call_the_command_line_alone():
    for path in (ROOT / "jobs").glob("*.py"):
        ours = {module for module in imported_modules(path) if module.startswith("cpo_ray")}
        assert ours == {"cpo_ray.cli", "cpo_ray.cli.run_job"} or ours == {"cpo_ray.cli"}, path


@pytest.mark.parametrize("package", GATES)
def test_one_file_imports_it(package):
    importers = {relative(path) for path in SOURCES if package in {m.split(".")[0] for m in imported_modules(path)}}
    assert importers <= GATES[package]


def test_vllm_is_imported_by_the_engines_alone():
    importers = {relative(path) for path in SOURCES if "vllm" in {m.split(".")[0] for m in imported_modules(path)}}
    assert importers == {
        "sampling/vllm_sampler.py",
        "inference/executors.py",
        "inference/no_repeat_ngram.py",
    }


@pytest.mark.parametrize("package", ["ray", "vllm", "deepspeed"])
def test_the_objective_is_pure_torch(package):
    for path in (PACKAGE / "objective").glob("*.py"):
        assert package not in {module.split(".")[0] for module in imported_modules(path)}, path


def reraises(handler):
    return any(isinstance(node, ast.Raise) and node.exc is None for node in ast.walk(handler))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_assert_and_no_broad_except(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: assert is for tests"
        if isinstance(node, ast.ExceptHandler) and not reraises(node):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            for kind in caught:
                assert kind is not None, f"{path}:{node.lineno}: except without a type"
                assert ast.unparse(kind) not in {"Exception", "BaseException"}, f"{path}:{node.lineno}: broad except"


def test_the_command_line_starts_light():
    heavy = "torch", "ray", "vllm", "transformers", "deepspeed", "sentence_transformers", "mauve", "pandas"
    code = f"import sys, cpo_ray.cli; print(*[name for name in {heavy!r} if name in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert seen.stdout.split() == []
