"""Sending a run to a Ray cluster: upload the code, submit the job, follow its log, bring the report home.

What is uploaded is this package, jobs/ and the resolved configuration; no secret travels. The judge's key is in the
environment of Ray's processes on the head, where the job finds it (docs/cluster.md).
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import requests
import yaml

from cpo_ray.artifacts import CHECKOUT, canonical, git_revision
from cpo_ray.cluster.session import ADMISSION
from cpo_ray.config import RunConfig
from cpo_ray.config.loading import SECRET_KEY
from cpo_ray.errors import ClusterError, ConfigError, RunInUseError
from cpo_ray.submission.report_archive import unpack

DASHBOARD = "http://127.0.0.1:8265"  # the near end of `ray dashboard cluster.yaml` or `kubectl port-forward`
POLL_S = 2.0
PATIENCE_S = 600.0  # how long the cluster may be out of reach while a job is followed
START_S = 120.0  # how long a cluster may take until it takes jobs
NOT_YET = "No available agent"
THERE = "already exists"
# What Ray's client raises where the way to the cluster is broken, or where what answers is a tunnel or a head that starts.
OUT_OF_REACH = (aiohttp.ClientError, requests.RequestException, TimeoutError, RuntimeError)
CHATTY = (  # loggers that tell of every package and every connection
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
SHORTEST_SECRET = 8  # characters; a shorter value would be found everywhere

Write = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `code`: 0, what the driver returned, or 143 where it was stopped."""

    job: str
    code: int
    message: str


def job_command(
    config: RunConfig, run_dir: str | None, *, first: str | None, last: str | None, accept_changes: bool
) -> str:
    """What the job runs, in the uploaded folder, quoted for a shell."""
    words = ["python", "jobs/pipeline.py", f"{config.name}.yaml"]
    for option, value in (("--run-dir", run_dir), ("--from", first), ("--until", last)):
        words += [option, value] if value else []
    return shlex.join([*words, *(["--accept-changes"] if accept_changes else [])])


def known_secrets(environment: Mapping[str, str], config: RunConfig) -> dict[str, str]:
    """Variable -> value, for what this process knows and no job may show."""
    named = {each.key_variable for each in (config.judge, config.serving, config.sampling.unhelpful)}
    return {
        variable: value
        for variable, value in environment.items()
        if (variable in named or SECRET_KEY.search(variable)) and len(value) >= SHORTEST_SECRET
    }


def refuse_secrets(command: str, folder: Path, secrets: Mapping[str, str]) -> None:
    """Raise ConfigError where a secret's value stands in the job's command or in a file to be uploaded."""
    for variable, value in secrets.items():
        if value in command:
            raise ConfigError(f"the job's command holds the value of {variable}; everyone on the cluster could read it")
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            if value.encode() in file.read_bytes():
                raise ConfigError(
                    f"{file.relative_to(folder)} holds the value of {variable} and would be uploaded; take it out"
                )


@contextlib.contextmanager
def upload_folder(config: RunConfig, include: Sequence[Path]) -> Iterator[Path]:
    """A folder with what the job needs: this package, jobs/, the resolved configuration, and what the user adds.

    Raises ConfigError outside a checkout, or where a path to include is missing or its name is taken.
    """
    if not (CHECKOUT / "jobs" / "pipeline.py").is_file():
        raise ConfigError(f"no jobs/ at {CHECKOUT}: submit from a source checkout (make install)")
    with tempfile.TemporaryDirectory(prefix="cpo_ray-") as name:
        folder = Path(name)
        without = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        for part in (CHECKOUT / "cpo_ray", CHECKOUT / "jobs", *include):
            target = folder / part.resolve().name
            if not part.exists() or target.exists():
                raise ConfigError(f"--include {part}: {'its name is taken' if target.exists() else 'it is not there'}")
            if part.is_dir():
                shutil.copytree(part, target, ignore=without)
            else:
                shutil.copy2(part, target)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (folder / f"{config.name}.yaml").write_text(text, encoding="utf-8")
        (folder / "REVISION").write_text(git_revision() or "unknown", encoding="utf-8")
        yield folder


def connect(address: str | None) -> Any:
    """Ray's client for jobs.

    Raises ConfigError for an address that is no URL, and ClusterError where no dashboard answers there, or where the
    token is missing or wrong.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)  # it tells of every package and every connection
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DASHBOARD
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is not the URL of a dashboard: give one as {DASHBOARD}")
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # this, or RAY_ADDRESS, the client prefers to what it is given
    try:
        return JobSubmissionClient(url)
    except ConnectionError:
        raise ClusterError(
            f"nobody answers at {url}: is the tunnel open (`ray dashboard cluster.yaml`), or give --address"
        ) from None
    except AuthenticationError as error:
        raise ClusterError(f"{url}: {str(error).strip().splitlines()[0]}. {ADMISSION}") from None
    except (requests.RequestException, RuntimeError, KeyError, TypeError) as error:  # an answer, but not Ray's
        raise ClusterError(
            f"what answers at {url} is not Ray's dashboard ({type(error).__name__}: {error}): "
            "is the cluster up, and does the tunnel or --address lead to its port 8265?"
        ) from None


def send(
    client: Any, config: RunConfig, command: str, include: Sequence[Path], run_dir: str | None
) -> tuple[str, bool]:
    """Submit the job; its id, and False where this very run is under way already: then that job's id.

    Raises ConfigError for a secret in what would be sent, and RunInUseError where a job with another command or
    configuration is at work on the same run.
    """
    resolved = canonical(config.model_dump(mode="json"))
    metadata = {
        "run": config.name,
        "run_dir": run_dir or "",
        "command": command,
        "configuration": hashlib.sha256(resolved.encode()).hexdigest()[:16],
    }
    for job in client.list_jobs():
        there = job.metadata or {}
        if job.status.is_terminal() or any(there.get(key) != metadata[key] for key in ("run", "run_dir")):
            continue
        _refuse_another(job.submission_id, there, metadata)
        return job.submission_id, False
    with upload_folder(config, include) as folder:
        refuse_secrets(command, folder, known_secrets(os.environ, config))
        job_id = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        _submit(client, command, job_id, str(folder), metadata)
    return job_id, True


def _refuse_another(job: str, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise RunInUseError naming what differs between a job under way and the one that would be sent."""
    lines = [f"  {key}: {there.get(key)} there, {here[key]} here" for key in here if there.get(key) != here[key]]
    if lines:
        raise RunInUseError(
            f"{job} is at work on this run, but is another job:\n" + "\n".join(lines) + "\n"
            f"Wait for it, end it (`ray job stop {shlex.quote(job)}`), or give another --run-dir."
        )


def _submit(client: Any, command: str, job: str, working_dir: str, metadata: dict[str, str]) -> None:
    """Submit, patiently: a cluster that has just started answers before it can take jobs, and connections break."""
    until = time.monotonic() + START_S
    away: float | None = None
    sent = False
    while not sent:
        try:
            client.submit_job(
                entrypoint=command, submission_id=job, runtime_env={"working_dir": working_dir}, metadata=metadata
            )
            sent = True
        except requests.RequestException as error:
            away = _bear(error, away)
            time.sleep(POLL_S)
        except RuntimeError as error:
            sent = away is not None and THERE in str(error)  # it had arrived before the connection broke
            if not sent and (NOT_YET not in str(error) or time.monotonic() > until):
                raise ClusterError(f"the cluster does not take the job {job}: {error}") from None
            time.sleep(POLL_S)


def follow(client: Any, job: str, write: Write) -> Outcome:
    """Pass the job's log to `write` until it ends, across broken connections.

    Raises ClusterError where the cluster cannot be reached for PATIENCE_S.
    """
    asyncio.run(_follow_log(client, job, write))
    info = _patiently(lambda: client.get_job_info(job))
    stopped = str(info.status.value) == "STOPPED"
    code = 0 if str(info.status.value) == "SUCCEEDED" else 143 if stopped else info.driver_exit_code or 1
    return Outcome(job, code, info.message or "")


async def _follow_log(client: Any, job: str, write: Write) -> None:
    written = 0
    away: float | None = None
    while True:
        passed = 0  # a log is told from its beginning at each connection
        try:
            async for chunk in client.tail_job_logs(job):
                fresh = chunk[max(0, written - passed) :]
                passed += len(chunk)
                if fresh:
                    write(fresh)
                    written += len(fresh)
            away = None
        except OUT_OF_REACH as error:
            # One connection carries the log for hours: where it has told anything, it stood until now.
            away = _bear(error, None if passed else away)
        else:
            if _patiently(lambda: client.get_job_status(job)).is_terminal():
                return
        await asyncio.sleep(POLL_S)


def _patiently(ask: Callable[[], Any]) -> Any:
    """What the cluster answers. Raises ClusterError where it cannot be reached for PATIENCE_S."""
    away: float | None = None
    while True:
        try:
            return ask()
        except OUT_OF_REACH as error:
            away = _bear(error, away)
        time.sleep(POLL_S)


def _bear(error: Exception, away: float | None) -> float:
    """Since when the cluster is out of reach: `away`, or now where it was in reach (None) until this error.

    Raises ClusterError after PATIENCE_S.
    """
    now = time.monotonic()
    since = now if away is None else away
    if now - since > PATIENCE_S:
        raise ClusterError(
            f"the cluster cannot be reached for {PATIENCE_S:.0f} s: {error}. What was submitted goes on without this "
            "command; once the tunnel stands again (`ray dashboard cluster.yaml`), the same command follows it"
        ) from error
    return since


def fetch_report(client: Any, job: str, config: RunConfig, run_dir: str | None, target: Path) -> None:
    """Bring the run's report to `target`, by a job that writes it to its log. Raises ClusterError, ArtifactError."""
    environment = _patiently(lambda: client.get_job_info(job)).runtime_env
    command = shlex.join(
        ["python", "-m", "cpo_ray.submission.report_archive", config.name, *([run_dir] if run_dir else [])]
    )
    errand = f"{job}-report-{time.strftime('%H%M%S', time.gmtime())}"
    _submit(client, command, errand, environment["working_dir"], {})
    while not _patiently(lambda: client.get_job_status(errand)).is_terminal():
        time.sleep(POLL_S / 4)
    log = re.sub(r"\r\n?", "\n", _patiently(lambda: client.get_job_logs(errand)))
    target.parent.mkdir(parents=True, exist_ok=True)
    unpack(log, target)
    with contextlib.suppress(requests.RequestException):  # the report is here; one line more in a list of jobs
        client.delete_job(errand)
