"""Jobs on a cluster of two nodes on this machine."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest

from tests.ray_nodes import HEAD_IP, WORKER_IP, two_nodes

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tiny.yaml"
KEY = "judge-key-that-nobody-may-see"


@pytest.fixture(scope="module")
def folder():
    """A short path, because Ray's sockets are in it."""
    path = Path(tempfile.mkdtemp(prefix="two"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes(folder):
    with two_nodes(folder, CPO_RAY_JUDGE_KEY=KEY, CPO_RAY_RUNS=str(folder / "runs")) as cluster:
        yield cluster


def submit(nodes, cwd, *options, environment=None):
    command = [Path(sys.executable).with_name("cpo-ray"), "submit", TINY, "--address", nodes.dashboard, *options]
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment or nodes.environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def submitted(nodes, folder):
    """The output of a submitted job that ran the first stages, and a client with the token."""
    seen = submit(nodes, folder, "--until", "data")
    assert seen.returncode == 0, seen.stdout + seen.stderr
    headers = {"Authorization": f"Bearer {Path(nodes.environment['RAY_AUTH_TOKEN_PATH']).read_text()}"}
    with httpx.Client(base_url=nodes.dashboard, headers=headers, trust_env=False, timeout=30) as client:
        yield seen.stdout, client


@pytest.mark.e2e
def test_a_job_runs_on_the_cluster_and_its_log_is_printed_here(submitted, folder):
    output, _ = submitted
    assert "submitted" in output.splitlines()[0]
    assert "data: read, split and tokenize the examples" in output
    assert "made data in" in output
    assert "warning" not in output
    assert (folder / "runs" / "tiny" / "data" / "manifest.json").is_file()


@pytest.mark.e2e
def test_the_cluster_has_two_nodes(submitted):
    nodes = submitted[1].get("/nodes?view=summary").json()["data"]["summary"]
    assert {node["ip"] for node in nodes} == {HEAD_IP, WORKER_IP}


@pytest.mark.e2e
def test_the_judges_key_is_not_exposed(submitted, folder):
    output, client = submitted
    (job,) = client.get("/api/jobs/").json()
    shown = [output, client.get(f"/api/jobs/{job['submission_id']}/logs").text, str(job)]
    shown += [
        client.get(page).text for page in ("/api/jobs/", "/nodes?view=details", "/api/v0/workers", "/api/v0/actors")
    ]
    assert all(KEY not in page for page in shown)
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 20
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.e2e
def test_a_job_gets_the_judges_key_from_the_head_and_its_exit_code_is_returned(nodes, submitted, folder):
    """Without the key this job would exit with 2 before it looks for answers to judge."""
    judge = ["--set", "judge.url=http://127.0.0.1:9/v1", "--set", "judge.model=m", "--accept-changes"]
    seen = submit(nodes, folder, "--from", "judging", "--until", "judging", *judge)
    assert seen.returncode == 1
    assert "run the stage `generation` first" in seen.stdout
    assert KEY not in seen.stdout + seen.stderr


@pytest.mark.e2e
def test_a_finished_runs_report_is_fetched(nodes, submitted, folder):
    """In a separate process, because Ray caches the first token that a process uses."""
    report = folder / "runs" / "tiny" / "report"
    report.mkdir()
    (report / "index.html").write_text("<p>all of it</p>" * 1000)
    target = folder / "home" / "reports" / "tiny"
    command = [sys.executable, "-c", FETCH, nodes.dashboard, str(TINY), str(target)]
    seen = subprocess.run(command, env=nodes.environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert seen.returncode == 0, seen.stderr
    assert (target / "index.html").read_text() == "<p>all of it</p>" * 1000


FETCH = """
import sys
from pathlib import Path
from cpo_ray.submission import jobs
from cpo_ray.config.loading import load_config

address, config, target = sys.argv[1:]
client = jobs.connect(address)
job = next(each.submission_id for each in client.list_jobs() if each.metadata)
for _ in range(2):  # the second replaces the first
    jobs.fetch_report(client, job, load_config(Path(config)), None, Path(target))
"""


@pytest.mark.e2e
def test_clients_without_the_token_are_rejected(nodes, folder):
    with httpx.Client(base_url=nodes.dashboard, trust_env=False, timeout=30) as client:
        for page in ("/api/jobs/", "/nodes?view=summary", "/api/v0/actors", "/api/cluster_status", "/api/v0/logs"):
            assert client.get(page).status_code == 401, page
        assert client.post("/api/jobs/", json={"entrypoint": "true"}).status_code == 401
        client.headers["Authorization"] = "Bearer guessed"
        assert client.post("/api/jobs/", json={"entrypoint": "true"}).status_code == 403
    seen = submit(nodes, folder, "--until", "data", environment=nodes.stranger | {"RAY_AUTH_TOKEN": "guessed"})
    assert seen.returncode == 1
    assert "token" in seen.stderr
    code = f"import ray._raylet as r; r.GcsClient(address='{nodes.gcs}').internal_kv_keys(b'', None, 5)"
    for environment, expected in ((nodes.environment, 0), (nodes.stranger | {"RAY_AUTH_MODE": "disabled"}, 1)):
        asked = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert asked.returncode == expected, asked.stderr
    assert "nauthenticated" in asked.stderr or "nauthorized" in asked.stderr
