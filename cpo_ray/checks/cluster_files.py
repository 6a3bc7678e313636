"""Check cluster descriptions (cluster.yaml, kuberay/): placeholders left to edit, and settings that give strangers access."""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cpo_ray.checks.machine import Check
from cpo_ray.errors import ConfigError

PLACEHOLDER = "CHANGE-ME"
EDIT = re.compile(r"#\s*EDIT:\s*(.*)$")
WITH_HEAD = {"RayCluster", "RayService"}  # a RayJob may use the head of an existing cluster
INTERNAL_SERVICES = {"ClusterIP", None}  # types of a Kubernetes service that is not reachable from outside


def check_cluster_file(path: Path, home: Path) -> list[Check]:
    """Check a launcher file, a Kubernetes manifest, or a folder of these. home: the folder with Ray's token.

    Raises ConfigError for a missing file, a folder without *.yaml, and text that is not YAML.
    """
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path} has no *.yaml files")
    return [check for file in files for check in _check_file(file, home)]


def _check_file(file: Path, home: Path) -> Iterator[Check]:
    try:
        text = file.read_text(encoding="utf-8")
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except FileNotFoundError:
        raise ConfigError(f"no cluster file {file}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise ConfigError(f"{file} is not a cluster description: it {'has no keys' if documents else 'is empty'}")
    unedited = list(find_unedited(text))
    for number, seen, remedy in unedited:
        yield Check(f"{file.name}:{number}", "fail", seen, remedy)
    if not unedited:
        yield Check(file.name, "ok", "every marked line is edited")
    for document in documents:
        if "apiVersion" in document:
            yield from _check_manifest(f"{file.name} {document.get('kind')}", document)
        else:
            yield from _check_launcher(file, document, home)


def find_unedited(text: str) -> Iterator[tuple[int, str, str]]:
    """Lines that still have the placeholder: number from 1, content, and the remedy from the EDIT comment."""
    for number, line in enumerate(text.splitlines(), 1):
        content, _, comment = line.partition(" #")
        if PLACEHOLDER in content and not line.lstrip().startswith("#"):
            mark = EDIT.search(f"#{comment}")
            yield number, content.strip(), mark[1] if mark else "put your own value here"


def _check_launcher(file: Path, config: dict[str, Any], home: Path) -> Iterator[Check]:
    schema = check_schema(file.name, config)
    yield schema
    if schema.status == "fail":  # the checks below rely on the schema
        return
    yield check_dashboard(config.get("head_start_ray_commands", []))
    yield check_shipped_token(config.get("file_mounts", {}), home)
    key = config.get("auth", {}).get("ssh_private_key")
    if key and PLACEHOLDER not in key:
        yield check_ssh_key(Path(key).expanduser())


def check_schema(name: str, config: dict[str, Any]) -> Check:
    """Validate a launcher file against Ray's own schema, without calling a cloud."""
    problem = _launcher_problem(config)
    if problem:
        return Check(f"{name} schema", "fail", problem, "correct it, or start again from the shipped cluster.yaml")
    return Check(f"{name} schema", "ok", "as Ray's launcher expects")


def _launcher_problem(config: dict[str, Any]) -> str | None:
    import jsonschema  # type: ignore[import-untyped]
    from ray import autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads(Path(autoscaler.__file__).with_name("ray-schema.json").read_text(encoding="utf-8"))
    try:
        jsonschema.validate(config, schema)  # before Ray fills in defaults, which fails on an empty section
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the defaults that it fills in
            validate_config(prepare_config(config))
    except jsonschema.ValidationError as error:
        return f"{'.'.join(map(str, error.absolute_path)) or 'the file'}: {error.message}"
    except (ValueError, KeyError) as error:
        return str(error)
    return None


def check_dashboard(commands: list[str]) -> Check:
    """The dashboard, which also takes jobs, must listen on the head's loopback; users reach it through SSH."""
    hosts = re.findall(r"--dashboard-host[= ](\S+)", " ".join(commands))
    wrong = [host for host in hosts if host not in {"127.0.0.1", "localhost", "::1"}]
    if wrong:
        return Check("dashboard", "fail", f"listens on {wrong[0]}", "--dashboard-host=127.0.0.1, and ray dashboard")
    return Check("dashboard", "ok", "on the head's loopback")


def check_shipped_token(mounts: dict[str, str], home: Path) -> Check:
    """Every node gets the token, and the local file exists."""
    source = next((local for remote, local in mounts.items() if remote.endswith(".ray/auth_token")), None)
    if source is None:
        return Check("Ray token", "fail", "not in file_mounts", "file_mounts: {~/.ray/auth_token: ~/.ray/auth_token}")
    file = Path(source.replace("~", str(home), 1))
    if not file.is_file():
        return Check("Ray token", "fail", f"{file} does not exist", "ray get-auth-token --generate")
    return Check("Ray token", "ok", f"{file} is copied to every node")


def check_ssh_key(file: Path) -> Check:
    """It exists and only its owner can read it: otherwise ssh refuses it."""
    if not file.is_file():
        return Check(
            "SSH key", "fail", f"{file} does not exist", "set auth.ssh_private_key to the private key of the pair"
        )
    if file.stat().st_mode & 0o077:
        return Check("SSH key", "fail", f"{file} can be read by others", f"chmod 600 {file}")
    return Check("SSH key", "ok", str(file))


def _check_manifest(name: str, manifest: dict[str, Any]) -> Iterator[Check]:
    """A Ray cluster on Kubernetes must require the token and must not be reachable from outside."""
    spec = _section(manifest, "spec")
    cluster = _section(spec, "rayClusterConfig") or _section(spec, "rayClusterSpec") or spec
    head = _section(cluster, "headGroupSpec")
    if not head:
        if manifest.get("kind") in WITH_HEAD:
            yield Check(f"{name} head", "fail", "no headGroupSpec", "start again from the shipped manifest")
        return
    if _section(cluster, "authOptions").get("mode") != "token":
        yield Check(f"{name} token", "fail", "anyone who reaches it can run code", "spec.authOptions: {mode: token}")
    else:
        yield Check(f"{name} token", "ok", "required")
    kind = head.get("serviceType")
    if kind not in INTERNAL_SERVICES:
        yield Check(f"{name} service", "fail", f"serviceType {kind} exposes it", "serviceType: ClusterIP, port-forward")


def _section(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """The section at `key`, or an empty one if it has no keys."""
    value = tree.get(key)
    return value if isinstance(value, dict) else {}
