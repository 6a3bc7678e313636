import http.server
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ClusterError, ConfigError, RunInUseError
from cpo_ray.submission import jobs, report_archive
from cpo_ray.submission.upload import job_command

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tiny.yaml"
KEY = "judge-key-that-nobody-may-see"


def config(**sections):
    return parse_config({"name": "x", **sections}, "test")


class FakeClient:
    """A cluster whose connection breaks in the middle of the log."""

    def __init__(self, chunks, status="SUCCEEDED", code=None):
        self.chunks, self.status, self.code, self.connections = chunks, status, code, 0
        self.jobs = []

    async def tail_job_logs(self, job):
        self.connections += 1
        for number, chunk in enumerate(self.chunks):
            if self.connections == 1 and number == 2:
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield chunk

    def get_job_status(self, job):
        return SimpleNamespace(value=self.status, is_terminal=lambda: self.connections > 1)

    def get_job_info(self, job):
        return SimpleNamespace(
            status=SimpleNamespace(value=self.status), driver_exit_code=self.code, message="the last words"
        )

    def list_jobs(self):
        return self.jobs


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 143), ("STOPPED", 0, 143)],
)
def test_a_log_is_followed_across_a_broken_connection(monkeypatch, status, code, expected):
    monkeypatch.setattr(jobs, "POLL_S", 0)
    client, written = FakeClient(["one\n", "two\n", "thr", "ee\n"], status, code), []
    outcome = jobs.follow(client, "job", written.append)
    assert "".join(written) == "one\ntwo\nthree\n"
    assert (outcome.code, outcome.message) == (expected, "the last words")


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances only when the test or a sleep advances it."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(jobs.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))

    async def pause(seconds):
        clock.now += seconds

    monkeypatch.setattr(jobs.asyncio, "sleep", pause)
    return clock


def breaks(times, answer=None):
    """A call that fails `times` times with a broken connection, then returns `answer` or raises it."""
    seen = iter(range(times))

    def call(*_, **__):
        if next(seen, None) is not None:
            raise requests.ConnectionError("Connection refused")
        if isinstance(answer, Exception):
            raise answer
        return answer

    return call


def test_a_long_log_does_not_count_as_an_outage(clock):
    """One connection carries the log: it breaks after two hours, the last of them without output."""
    client, written = FakeClient(["one\n", "two\n", "three\n"]), []

    def write(text):
        written.append(text)
        clock.now += 3600

    assert jobs.follow(client, "job", write).code == 0
    assert "".join(written) == "one\ntwo\nthree\n"


def test_an_unreachable_cluster_is_given_up_after_the_limit(clock):
    client = FakeClient(["one\n", "two\n", "three\n"])

    async def tail_job_logs(job):
        client.connections += 1
        if client.connections == 1:
            yield "one\n"
            clock.now += 3600
        raise requests.ConnectionError("Connection refused")

    client.tail_job_logs = tail_job_logs
    with pytest.raises(ClusterError, match=r"unreachable for 600 s.*keeps running.*the same command follows it"):
        jobs.follow(client, "job", lambda _: None)
    assert 4200 < clock.now < 4210


def test_asking_for_the_jobs_end_is_retried(clock):
    client = FakeClient(["one\n"], "FAILED", 2)
    client.get_job_info = breaks(2, client.get_job_info("job"))
    client.get_job_status = breaks(2, SimpleNamespace(is_terminal=lambda: True))
    assert jobs.follow(client, "job", lambda _: None).code == 2
    client.get_job_info = breaks(1000)
    with pytest.raises(ClusterError, match="unreachable"):
        jobs.follow(client, "job", lambda _: None)


def test_a_report_is_fetched_across_broken_connections(clock, tmp_path):
    report = tmp_path / "report"
    report.mkdir()
    (report / "index.html").write_text("<p>all of it</p>")
    client = SimpleNamespace(
        get_job_info=breaks(1, SimpleNamespace(runtime_env={"working_dir": "gcs://code.zip"})),
        submit_job=breaks(1, RuntimeError("Job with submission_id job-report already exists.")),
        get_job_status=breaks(2, SimpleNamespace(is_terminal=lambda: True)),
        get_job_logs=breaks(2, report_archive.pack(report)),
        delete_job=breaks(1),
    )
    jobs.fetch_report(client, "job", config(), None, tmp_path / "home")
    assert (tmp_path / "home" / "index.html").read_text() == "<p>all of it</p>"
    client.get_job_status = breaks(1000)
    client.submit_job = breaks(0)
    with pytest.raises(ClusterError, match="unreachable"):
        jobs.fetch_report(client, "job", config(), None, tmp_path / "home")


def test_submitting_waits_for_a_cluster_that_is_starting(monkeypatch):
    monkeypatch.setattr(jobs, "POLL_S", 0)
    client, answers = FakeClient([]), ["500: No available agent to submit job", None, "400: no such folder"]

    def submit_job(**job):
        answer = answers.pop(0)
        if answer:
            raise RuntimeError(answer)

    client.submit_job = submit_job
    job, new = jobs.send(client, config(), "python x", [], None)
    assert new
    assert job.startswith("x-")
    with pytest.raises(ClusterError, match="400: no such folder"):
        jobs.send(client, config(), "python x", [], None)


@pytest.fixture
def busy():
    """A cluster that records the jobs it gets, with a function to send them."""
    client = FakeClient([])

    def submit_job(submission_id, metadata, **_):
        assert all(isinstance(value, str) for value in metadata.values())
        status = SimpleNamespace(is_terminal=lambda: submission_id in client.ended)
        client.jobs.append(SimpleNamespace(submission_id=submission_id, metadata=metadata, status=status))

    def send(*, until=None, run_dir=None, **sections):
        run = config(**sections)
        command = job_command(run, run_dir, first=None, last=until, accept_changes=False)
        return jobs.send(client, run, command, [], run_dir)

    client.submit_job, client.ended, client.send = submit_job, set(), send
    client.jobs = [SimpleNamespace(submission_id="y", metadata=None, status=SimpleNamespace(is_terminal=lambda: False))]
    return client


def test_a_running_job_is_followed_not_started_twice(busy):
    job, new = busy.send(until="data", run_dir="/mnt/a")
    assert new
    assert busy.send(until="data", run_dir="/mnt/a") == (job, False)
    busy.ended.add(job)
    assert busy.send(until="data", run_dir="/mnt/a")[1]


def test_another_job_on_the_same_run_is_refused_with_the_differences(busy):
    job, _ = busy.send(until="data", run_dir="/mnt/a")
    with pytest.raises(
        RunInUseError, match=rf"{job} is running on.*\n  configuration: \w+ running, \w+ new\n.*job stop {job}"
    ):
        busy.send(until="data", run_dir="/mnt/a", seed=99)
    with pytest.raises(
        RunInUseError, match=r"another job:\n  command: .*--until data running, .*--run-dir /mnt/a new\nWait"
    ):
        busy.send(run_dir="/mnt/a")
    assert len(busy.jobs) == 2


def test_another_run_directory_is_another_run(busy):
    assert busy.send(run_dir="/mnt/a")[1]
    assert busy.send(run_dir="/mnt/b", seed=99)[1]
    assert busy.send()[1]


@pytest.fixture
def dashboard(monkeypatch):
    """A server that answers every GET with `answer`: (status, body)."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # `connect` sets both variables; monkeypatch restores them
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = self.server.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_address_where_nothing_answers(dashboard, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")  # which Ray's client prefers to its argument
    with pytest.raises(ClusterError, match=r"nothing answers at http://127\.0\.0\.1:9: open the tunnel"):
        jobs.connect("http://127.0.0.1:9")


@pytest.mark.parametrize(
    "answer", [(200, b"hello"), (200, b"[]"), (200, b"{}"), (404, b"no such page"), (502, b"bad gateway")]
)
def test_a_server_that_is_not_ray_is_reported(dashboard, answer):
    dashboard.answer = answer
    with pytest.raises(
        ClusterError, match=r"what answers at http://127\.0\.0\.1:\d+ is not Ray's dashboard.*port 8265"
    ):
        jobs.connect(f"http://127.0.0.1:{dashboard.server_port}")


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "localhost", "ray://head:10001"])
def test_an_address_must_be_a_url(dashboard, address):
    with pytest.raises(ConfigError, match=r"is not the URL of a dashboard: give one as http://127\.0\.0\.1:8265"):
        jobs.connect(address)
