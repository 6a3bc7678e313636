"""`cpo-ray merge`: weighted means of models. Like a stage's output, each is complete or absent, and reused if unchanged."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import ValidationError
from rich.markup import escape

from cpo_ray.artifacts import find_artifact, hash_file, make_artifact
from cpo_ray.config import MergingConfig
from cpo_ray.errors import ArtifactError, ConfigError
from cpo_ray.monitoring.console import say

Dtype = Literal["bfloat16", "float16", "float32"]


def merge(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the merged models.")],
    mle: Annotated[Path | None, typer.Option("--mle", metavar="DIR", help="The model with weight alpha.")] = None,
    cpo: Annotated[Path | None, typer.Option("--cpo", metavar="DIR", help="The model with weight 1 - alpha.")] = None,
    alpha: Annotated[
        list[float] | None, typer.Option("--alpha", metavar="A...", help="One model per alpha: DIR/merged-0.30, ...")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="DIR=WEIGHT", help="Instead: any number of models, merged into --out itself."),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            "--dtype", help="Round the result to this dtype; the models' own may differ. Default: the models'."
        ),
    ] = None,
) -> None:
    """Average models' weights: alpha * MLE + (1 - alpha) * CPO.

    Reads and writes Hugging Face directories with safetensors. Weights are streamed, so files may be larger than memory.
    """
    if model and not (mle or cpo or alpha):
        _merge(out.parent, out.name, [_parse_model(text) for text in model], dtype)
    elif mle and cpo and alpha and not model:
        merge_alphas(mle, cpo, alpha, out, dtype)
    else:
        raise ConfigError("give --mle DIR, --cpo DIR and --alpha A..., or --model DIR=WEIGHT for every model")


def merge_alphas(mle: Path, cpo: Path, alphas: list[float], out: Path, dtype: str | None = None) -> dict[str, Path]:
    """Make `out/merged-A` for every alpha, or reuse it; return name -> directory. Raises ConfigError or ArtifactError."""
    named = name_alphas(alphas)
    for name, alpha in named.items():
        _merge(out, name, [(cpo, 1 - alpha), (mle, alpha)], dtype)
    return {name: out / name for name in named}


def name_alphas(alphas: list[float]) -> dict[str, float]:
    """Directory name -> alpha, in order. Raises ConfigError for an alpha outside [0, 1] or two with one name."""
    try:
        config = MergingConfig(alphas=tuple(alphas))
    except ValidationError as error:
        problems = "; ".join(str(problem["msg"]) for problem in error.errors())
        raise ConfigError(f"--alpha {' '.join(f'{value:g}' for value in alphas)}: {problems}") from None
    return {config.model_name(value): value for value in config.alphas}


def _merge(root: Path, name: str, models: list[tuple[Path, float]], dtype: str | None) -> None:
    from cpo_ray.serving.merging import average_models

    target = root / name
    inputs: dict[str, object] = {
        "merge": [{"weight": weight, "files": _hash_files(folder)} for folder, weight in models]
    }
    if dtype is not None:
        inputs["dtype"] = dtype
    made = find_artifact(root, name)
    if target.exists() and (made is None or made.manifest.inputs != inputs):
        raise ArtifactError(f"{target} exists and is not this merge: choose another --out, or delete it")
    artifact = make_artifact(root, name, inputs, lambda partial: average_models(models, partial, dtype))
    what = "reused" if artifact.reused else "made"
    listed = " + ".join(f"{weight:g} {folder}" for folder, weight in models)
    say(f"[green]{what}[/] {escape(str(target))} = {escape(listed)}")
    if same := artifact.manifest.summary.get("change_nothing"):
        say(f"differences that change nothing: {escape(', '.join(same))}")


def _parse_model(text: str) -> tuple[Path, float]:
    folder, _, weight = text.rpartition("=")
    try:
        return Path(folder), float(weight)
    except ValueError:
        raise ConfigError(f"--model {text}: expected DIR=WEIGHT, for instance models/cpo=0.7") from None


def _hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of everything that a merge reads, by name."""
    from cpo_ray.serving.merging import files_read

    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a model directory: it does not exist")
    return {file.name: hash_file(file) for file in files_read(folder)}
