"""The public workflow: what it runs exists, and its shards have every end-to-end test once."""

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def shard(number, of):
    return subprocess.run(
        [ROOT / ".ci" / "shard", str(number), str(of)], capture_output=True, text=True, check=True
    ).stdout.split()


def test_every_file_with_end_to_end_tests_is_in_one_shard():
    files = [file for number in range(1, 5) for file in shard(number, 4)]
    assert len(files) == len(set(files))
    marked = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"mark\.(e2e|gpu)", file.read_text(encoding="utf-8"))
    }
    assert set(files) == marked


def test_the_workflow_runs_what_the_makefile_has():
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    targets = {target for step in steps for target in re.findall(r"\bmake ([a-z-]+)", step)}
    assert targets == {"lint", "test-fast", "install"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{target}:" in makefile for target in targets)
    assert workflow["jobs"]["e2e"]["strategy"]["matrix"]["shard"] == [1, 2, 3, 4]


def test_templates_and_the_citation_are_yaml():
    for file in [*(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"), ROOT / "CITATION.cff"]:
        assert yaml.safe_load(file.read_text(encoding="utf-8"))
