"""The client of a Ray cluster's job API: connect, submit a run, follow its log, fetch the report.

A broken connection is retried; the job keeps running without this process.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import requests

from cpo_ray.artifacts import canonical
from cpo_ray.cluster.session import AUTH_HINT
from cpo_ray.config import RunConfig
from cpo_ray.errors import ClusterError, ConfigError, RunInUseError
from cpo_ray.submission.report_archive import unpack
from cpo_ray.submission.upload import check_no_secrets, known_secrets, upload_folder

DASHBOARD = "http://127.0.0.1:8265"  # the local end of `ray dashboard cluster.yaml` or `kubectl port-forward`
POLL_S = 2.0
OUTAGE_LIMIT_S = 600.0  # how long the cluster may be unreachable while a job is followed
START_TIMEOUT_S = 120.0  # how long a new cluster may take until it accepts jobs
NO_AGENT_YET = "No available agent"
ALREADY_EXISTS = "already exists"
# What Ray's client raises if the connection breaks, or if the tunnel or a starting head answers in its place.
CONNECTION_ERRORS = (aiohttp.ClientError, requests.RequestException, TimeoutError, RuntimeError)

Write = Callable[[str], None]


@dataclass(frozen=True)
class JobResult:
    """How a job ended. `code`: 0, the driver's exit code, or 143 if the job was stopped."""

    job: str
    code: int
    message: str


def connect(address: str | None) -> Any:
    """Connect Ray's job client to the dashboard at `address`.

    Raises ConfigError for an address that is not a URL, and ClusterError if no Ray dashboard answers there, or if the token
    is missing or wrong.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)  # at INFO it logs every package and every connection
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DASHBOARD
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is not the URL of a dashboard: give one as {DASHBOARD}")
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # the client prefers this and RAY_ADDRESS to its argument
    try:
        return JobSubmissionClient(url)
    except ConnectionError:
        raise ClusterError(
            f"nothing answers at {url}: open the tunnel (`ray dashboard cluster.yaml`), or give --address"
        ) from None
    except AuthenticationError as error:
        raise ClusterError(f"{url}: {str(error).strip().splitlines()[0]}. {AUTH_HINT}") from None
    except (requests.RequestException, RuntimeError, KeyError, TypeError) as error:  # an answer, but not from Ray
        raise ClusterError(
            f"what answers at {url} is not Ray's dashboard ({type(error).__name__}: {error}): "
            "is the cluster up, and does the tunnel or --address lead to its port 8265?"
        ) from None


def send(
    client: Any, config: RunConfig, command: str, include: Sequence[Path], run_dir: str | None
) -> tuple[str, bool]:
    """Submit the job. Returns its id and True; if this run is already running, the id of that job and False.

    Raises ConfigError if a secret would be uploaded, and RunInUseError if a job with another command or configuration is
    running on the same run directory.
    """
    resolved = canonical(config.model_dump(mode="json"))
    metadata = {
        "run": config.name,
        "run_dir": run_dir or "",
        "command": command,
        "configuration": hashlib.sha256(resolved.encode()).hexdigest()[:16],
    }
    for job in client.list_jobs():
        running = job.metadata or {}
        if job.status.is_terminal() or any(running.get(key) != metadata[key] for key in ("run", "run_dir")):
            continue
        _check_same_job(job.submission_id, running, metadata)
        return job.submission_id, False
    with upload_folder(config, include) as folder:
        check_no_secrets(command, folder, known_secrets(os.environ, config))
        job_id = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        _submit(client, command, job_id, str(folder), metadata)
    return job_id, True


def _check_same_job(job: str, running: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Raise RunInUseError with the differences between a running job and the one to submit."""
    lines = [f"  {key}: {running.get(key)} running, {new[key]} new" for key in new if running.get(key) != new[key]]
    if lines:
        raise RunInUseError(
            f"{job} is running on this run directory, but is another job:\n" + "\n".join(lines) + "\n"
            f"Wait for it, stop it (`ray job stop {shlex.quote(job)}`), or give another --run-dir."
        )


def _submit(client: Any, command: str, job: str, working_dir: str, metadata: dict[str, str]) -> None:
    """Submit with retries: a cluster that has just started answers before it accepts jobs, and connections break."""
    deadline = time.monotonic() + START_TIMEOUT_S
    outage_start: float | None = None
    sent = False
    while not sent:
        try:
            client.submit_job(
                entrypoint=command, submission_id=job, runtime_env={"working_dir": working_dir}, metadata=metadata
            )
            sent = True
        except requests.RequestException as error:
            outage_start = _check_outage(error, outage_start)
            time.sleep(POLL_S)
        except RuntimeError as error:
            sent = outage_start is not None and ALREADY_EXISTS in str(error)  # it arrived before the connection broke
            if not sent and (NO_AGENT_YET not in str(error) or time.monotonic() > deadline):
                raise ClusterError(f"the cluster does not accept the job {job}: {error}") from None
            time.sleep(POLL_S)


def follow(client: Any, job: str, write: Write) -> JobResult:
    """Pass the job's log to `write` until the job ends; reconnect if the connection breaks.

    Raises ClusterError if the cluster is unreachable for OUTAGE_LIMIT_S.
    """
    asyncio.run(_follow_log(client, job, write))
    info = _retry(lambda: client.get_job_info(job))
    stopped = str(info.status.value) == "STOPPED"
    code = 0 if str(info.status.value) == "SUCCEEDED" else 143 if stopped else info.driver_exit_code or 1
    return JobResult(job, code, info.message or "")


async def _follow_log(client: Any, job: str, write: Write) -> None:
    written = 0
    outage_start: float | None = None
    while True:
        received = 0  # each connection sends the log from its beginning
        try:
            async for chunk in client.tail_job_logs(job):
                fresh = chunk[max(0, written - received) :]
                received += len(chunk)
                if fresh:
                    write(fresh)
                    written += len(fresh)
            outage_start = None
        except CONNECTION_ERRORS as error:
            # One connection carries the log for hours: if it has sent anything, the outage starts now.
            outage_start = _check_outage(error, None if received else outage_start)
        else:
            if _retry(lambda: client.get_job_status(job)).is_terminal():
                return
        await asyncio.sleep(POLL_S)


def _retry(request: Callable[[], Any]) -> Any:
    """Call `request` until it succeeds. Raises ClusterError if the cluster is unreachable for OUTAGE_LIMIT_S."""
    outage_start: float | None = None
    while True:
        try:
            return request()
        except CONNECTION_ERRORS as error:
            outage_start = _check_outage(error, outage_start)
        time.sleep(POLL_S)


def _check_outage(error: Exception, outage_start: float | None) -> float:
    """Return when the outage started: `outage_start`, or now if that is None.

    Raises ClusterError if that was more than OUTAGE_LIMIT_S ago.
    """
    now = time.monotonic()
    start = now if outage_start is None else outage_start
    if now - start > OUTAGE_LIMIT_S:
        raise ClusterError(
            f"the cluster has been unreachable for {OUTAGE_LIMIT_S:.0f} s: {error}. A submitted job keeps running. Once the "
            "tunnel is open again (`ray dashboard cluster.yaml`), the same command follows it"
        ) from error
    return start


def fetch_report(client: Any, job: str, config: RunConfig, run_dir: str | None, target: Path) -> None:
    """Copy the run's report to `target`, through a job that writes it to its log. Raises ClusterError, ArtifactError."""
    environment = _retry(lambda: client.get_job_info(job)).runtime_env
    command = shlex.join(
        ["python", "-m", "cpo_ray.submission.report_archive", config.name, *([run_dir] if run_dir else [])]
    )
    report_job = f"{job}-report-{time.strftime('%H%M%S', time.gmtime())}"
    _submit(client, command, report_job, environment["working_dir"], {})
    while not _retry(lambda: client.get_job_status(report_job)).is_terminal():
        time.sleep(POLL_S / 4)
    log = re.sub(r"\r\n?", "\n", _retry(lambda: client.get_job_logs(report_job)))
    target.parent.mkdir(parents=True, exist_ok=True)
    unpack(log, target)
    with contextlib.suppress(requests.RequestException):  # the report is here; the job would only stay in the list
        client.delete_job(report_job)
