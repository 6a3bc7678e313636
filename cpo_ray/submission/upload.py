"""What a job gets: its command, and a folder with this package, jobs/ and the resolved configuration, checked for secrets.

No secret is uploaded. The judge's key is in the environment of Ray's processes on the head (docs/cluster.md).
"""

import contextlib
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

import cpo_ray
from cpo_ray.artifacts import git_revision
from cpo_ray.config import RunConfig
from cpo_ray.config.loading import SECRET_KEY
from cpo_ray.errors import ConfigError

PACKAGE = Path(cpo_ray.__file__).parent
JOBS = Path(__file__).parent / "job_scripts"  # a symbolic link to jobs/ in a checkout; a wheel has the files
SHORTEST_SECRET = 8  # characters; a shorter value would match in too many places


def job_command(
    config: RunConfig, run_dir: str | None, *, first: str | None, last: str | None, accept_changes: bool
) -> str:
    """The job's command, run in the uploaded folder and quoted for a shell."""
    words = ["python", "jobs/pipeline.py", f"{config.name}.yaml"]
    for option, value in (("--run-dir", run_dir), ("--from", first), ("--until", last)):
        words += [option, value] if value else []
    return shlex.join([*words, *(["--accept-changes"] if accept_changes else [])])


def known_secrets(environment: Mapping[str, str], config: RunConfig) -> dict[str, str]:
    """Variable -> value, for the variables of `environment` that hold keys, tokens or passwords."""
    named = {each.key_variable for each in (config.judge, config.serving, config.sampling.unhelpful)}
    return {
        variable: value
        for variable, value in environment.items()
        if (variable in named or SECRET_KEY.search(variable)) and len(value) >= SHORTEST_SECRET
    }


def check_no_secrets(command: str, folder: Path, secrets: Mapping[str, str]) -> None:
    """Raise ConfigError if the job's command or a file in `folder` contains the value of a secret."""
    for variable, value in secrets.items():
        if value in command:
            raise ConfigError(
                f"the job's command holds the value of {variable}; everyone with access to the cluster could read it"
            )
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            if value.encode() in file.read_bytes():
                raise ConfigError(
                    f"{file.relative_to(folder)} holds the value of {variable} and would be uploaded; remove it"
                )


@contextlib.contextmanager
def upload_folder(config: RunConfig, include: Sequence[Path]) -> Iterator[Path]:
    """Yield a temporary folder with this package, jobs/, the resolved configuration, and the paths in `include`.

    Raises ConfigError if a path in `include` does not exist, or if its name is taken.
    """
    with tempfile.TemporaryDirectory(prefix="cpo_ray-") as temporary:
        folder = Path(temporary)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        parts = {PACKAGE: "cpo_ray", JOBS: "jobs"} | {part: part.resolve().name for part in include}
        for part, name in parts.items():
            target = folder / name
            if not part.exists() or target.exists():
                raise ConfigError(f"--include {part}: {'its name is taken' if target.exists() else 'no such path'}")
            if part.is_dir():
                shutil.copytree(part, target, ignore=ignored)
            else:
                shutil.copy2(part, target)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (folder / f"{config.name}.yaml").write_text(text, encoding="utf-8")
        (folder / "REVISION").write_text(git_revision() or "unknown", encoding="utf-8")
        yield folder
