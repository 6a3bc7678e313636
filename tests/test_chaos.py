"""The pipeline on three real nodes while a chaos monkey kills nodes and processes. `make chaos`; not part of CI.

A run is repeated until CPO_RAY_CHAOS_MINUTES have passed. CPO_RAY_CHAOS_FOLDER keeps the undisturbed run for the next time.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cpo_ray.artifacts import read_jsonl, read_table
from tests.monkey import Monkey, WorkerNodes
from tests.ray_nodes import ROOT, head

pytestmark = pytest.mark.chaos

MINUTES = float(os.environ.get("CPO_RAY_CHAOS_MINUTES", "20"))
PERIOD_S = float(os.environ.get("CPO_RAY_CHAOS_PERIOD_S", "60"))
SEED = int(os.environ.get("CPO_RAY_CHAOS_SEED", "17"))
CONFIG = ROOT / os.environ.get("CPO_RAY_CHAOS_CONFIG", "tests/chaos.yaml")
CLI = Path(sys.executable).with_name("cpo-ray")
RESULT = ROOT / "benchmarks" / "results" / "chaos.json"
TIMEOUT_S = 4 * 3600
MIXED = ["--set", "sampling.negatives.autoregressive=0"]  # these negatives do not depend on how an engine batches
SAMPLED = ["--set", "sampling.negatives.autoregressive=2", "--until", "sampling"]


def run(command, log, environment=None):
    """Run a command and wait for it. Returns its seconds and its output."""
    began = time.monotonic()
    with log.open("w") as output:
        ended = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            timeout=TIMEOUT_S,
            check=False,
        )
    text = log.read_text()
    assert ended.returncode == 0, text[-5000:]
    return time.monotonic() - began, text


def stage_seconds(root):
    """Stage -> seconds of its last execution."""
    ends = [entry for entry in read_jsonl(root / "logs" / "events.jsonl") if entry.get("outcome") == "done"]
    return {entry["stage"]: entry["seconds"] for entry in ends}


@pytest.fixture(scope="module")
def folder():
    kept = os.environ.get("CPO_RAY_CHAOS_FOLDER")
    path = Path(kept or tempfile.mkdtemp(prefix="chaos"))
    path.mkdir(exist_ok=True)
    yield path
    if not kept:
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The same run on one machine without kills."""
    root = folder / "undisturbed"
    if not (root / "report" / "manifest.json").is_file():
        run([CLI, "run", CONFIG, "--run-dir", root, *MIXED], folder / "undisturbed.log")
    return root


@pytest.fixture(scope="module")
def disturbed(folder, undisturbed):
    """Run directories: one with autoregressive negatives up to stage `sampling`, and complete ones without."""
    session = Path(tempfile.mkdtemp(prefix="ch"))  # a short path, because it contains sockets
    rounds, stamp = [], time.strftime("%H%M%S")
    try:
        with head(session, "--num-cpus=0") as nodes:
            workers = WorkerNodes(session, nodes, "--num-cpus=4")
            try:
                workers.add()
                workers.add()
                with Monkey(workers, SEED, PERIOD_S) as monkey:
                    while not rounds or time.monotonic() - monkey.started < 60 * MINUTES:
                        name = f"{stamp}-{len(rounds)}"
                        root, what = folder / name, MIXED if rounds else SAMPLED
                        submit = [CLI, "submit", CONFIG, "--address", nodes.dashboard, "--run-dir", root]
                        reports = ["--reports", folder / "reports"]
                        began, kills = time.monotonic(), len(monkey.kills)
                        _, output = run([*submit, *reports, *what], folder / f"{name}.log", nodes.environment)
                        rounds.append(
                            {
                                "root": root,
                                "seconds": round(time.monotonic() - began, 1),
                                "kills": monkey.kills[kills:],
                                "trainings_gone_on": output.count("workers were lost"),
                                "stages": stage_seconds(root),
                            }
                        )
            finally:
                workers.stop()
    finally:
        for log in [*session.glob("*.log"), *session.glob("session_latest/logs/job-driver-*.log")]:
            shutil.copy(log, folder / f"{stamp}-{log.name}")
        shutil.rmtree(session, ignore_errors=True)
    write_result(rounds, stage_seconds(undisturbed))
    return rounds


def write_result(rounds, calm):
    """Write the kills and the time that they cost to RESULT."""
    whole = rounds[1:]
    lost = {stage: round(sum(each["stages"][stage] - calm[stage] for each in whole) / len(whole), 1) for stage in calm}
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": CONFIG.name,
        "seed": SEED,
        "period_s": PERIOD_S,
        "kills": sum(len(each["kills"]) for each in rounds),
        "undisturbed_s": calm,
        "lost_s_per_run": lost | {"all": round(sum(lost.values()), 1)},
        "runs": [each | {"root": each["root"].name} for each in rounds],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["lost_s_per_run"]))


def test_the_chaos_run_lasted_long_enough(disturbed):
    assert sum(each["seconds"] for each in disturbed) >= 60 * MINUTES
    assert len(disturbed) > 1
    assert any(each["kills"] for each in disturbed)


def test_every_run_reached_its_report(disturbed):
    assert all((each["root"] / "report" / "index.html").is_file() for each in disturbed[1:])
    assert not [partial for each in disturbed for partial in each["root"].glob("**/.*.partial")]


def test_groups_are_those_of_an_undisturbed_run(disturbed, undisturbed):
    calm = read_table(undisturbed / "groups" / "train")
    for each in disturbed[1:]:
        groups = read_table(each["root"] / "groups" / "train")
        for column in set(calm.column_names) - {"similarity", "ref_logps"}:
            assert groups[column].equals(calm[column]), column
        for column in ("similarity", "ref_logps"):  # rounding depends on what is computed in one batch
            for one, other in zip(groups[column].to_pylist(), calm[column].to_pylist(), strict=True):
                assert one == pytest.approx(other, abs=1e-4), column


@pytest.mark.parametrize("model", ["reference", "cpo", "mle", "merged-0.50"])
def test_final_weights_are_those_of_an_undisturbed_run(disturbed, undisturbed, model):
    calm = load_file(undisturbed / "models" / model / "model.safetensors")
    for each in disturbed[1:]:
        weights = load_file(each["root"] / "models" / model / "model.safetensors")
        assert weights.keys() == calm.keys()
        assert all(torch.equal(weights[name], calm[name]) for name in calm)


def test_every_prompt_has_its_answers(disturbed):
    for each in disturbed[1:]:
        wanted = read_table(each["root"] / "data" / "test")["id"].to_pylist()
        for kind in ("generations", "verdicts"):
            files = sorted((each["root"] / kind).glob("*/*.jsonl"))
            assert files
            for file in files:
                assert [row["id"] for row in read_jsonl(file)] == wanted, file


def test_sampled_groups_are_complete(disturbed):
    """No row is missing, duplicated or malformed."""
    root = disturbed[0]["root"]
    rows = read_table(root / "groups" / "train").to_pylist()
    examples = read_table(root / "data" / "train").to_pylist()[: len(rows)]
    config = json.loads((root / "config.json").read_text())
    assert len(rows) == config["sampling"]["rows"]
    assert len({row["id"] for row in rows}) == len(rows)
    vocabulary = config["data"]["tokenizer"]["vocabulary_size"]
    for row, example in zip(rows, examples, strict=True):
        assert (row["id"], row["prompt_ids"]) == (example["id"], example["prompt_ids"])
        assert row["candidate_ids"][0] == example["response_ids"]
        kinds = row["candidate_kind"]
        assert kinds[0] == "gold"
        assert {kind: kinds.count(kind) for kind in set(kinds)} == {"gold": 1} | {
            kind: count for kind, count in config["sampling"]["negatives"].items() if count
        }
        assert sorted(row["rank"]) == list(range(len(kinds)))
        assert {len(row[name]) for name in row if name.startswith("candidate")} == {len(kinds)}
        assert all(0 <= token < vocabulary for tokens in row["candidate_ids"] for token in tokens)
        assert all(tokens for tokens in row["candidate_ids"])
        assert all(math.isfinite(logp) and logp < 0 for logp in row["ref_logps"])
