"""`cpo-ray serve`: models behind one OpenAI-compatible endpoint until SIGTERM or Ctrl-C."""

import contextlib
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from cpo_ray.cluster.session import ray_cluster
from cpo_ray.commands.merge import merge_alphas
from cpo_ray.config import ServingConfig
from cpo_ray.config.loading import override_defaults
from cpo_ray.errors import ConfigError
from cpo_ray.monitoring.console import redirect_output, say

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODELS...", help="Hugging Face directories: DIR or NAME=DIR.")
    ],
    alphas: Annotated[
        list[float] | None,
        typer.Option(
            "--alphas", metavar="A...", help="MODELS are the MLE and the CPO model: serve their averages too."
        ),
    ] = None,
    merged: Annotated[
        Path, typer.Option("--merged", metavar="DIR", help="Folder for the averages of --alphas.")
    ] = Path("merged"),
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="One engine for all models: it loads the weights of the model that is asked."),
    ] = False,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. Other than loopback needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free port.")] = 8000,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", metavar="FILE", help="The key's file. Default: CPO_RAY_API_KEY, or a new key."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", min=1, metavar="TOKENS", help="Prompt and answer together. Default: the models'."),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs per engine; 0 serves on the CPU.")] = 0,
    log: Annotated[Path, typer.Option("--log", metavar="FILE", help="Output of Ray and vLLM.")] = Path(
        "logs/serve.log"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of `serving`, e.g. engine.kv_cache_gib=4. Repeatable."),
    ] = None,
) -> None:
    """Serve models behind one OpenAI-compatible endpoint, with a key, until Ctrl-C or SIGTERM.

    Active requests finish first (serving.drain_timeout_s); a second signal stops at once.
    """
    options = {
        "host": host,
        "port": port,
        "in_place": in_place,
        "key_file": key_file,
        "engine.tensor_parallel": gpus or 1,
    }
    given = [f"serving.{key}={value}" for key, value in options.items() if value is not None]
    config = override_defaults((*given, *(f"serving.{text}" for text in overrides or ())), "cpo-ray serve")
    folders = name_models(models)
    if alphas:
        folders |= _merge_pair(list(folders.values()), alphas, merged)
    tokens = context or _shortest_context(list(folders.values()))
    with (
        redirect_output(log),
        _with_key_file(config.serving) as serving,
        _whole_models(folders, merged) as whole,
        ray_cluster(config.cluster) as ray,
    ):
        ray.ensure()
        _serve_until_signal(whole, serving, tokens, gpus)


def name_models(models: Sequence[str]) -> dict[str, Path]:
    """Name at the endpoint -> directory, from DIR or NAME=DIR. Raises ConfigError for a missing model or a repeated name."""
    folders: dict[str, Path] = {}
    for text in models:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text)
        name = name if equals else path.resolve().name
        if not (path / "config.json").is_file():
            raise ConfigError(f"{text}: {path} is not a model directory: it holds no config.json")
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{text}: {name!r} is not a valid model name (letters, digits, '.', '_', '-'); give NAME=DIR"
            )
        if name in folders:
            raise ConfigError(f"{text}: the name {name!r} is taken; give NAME=DIR")
        folders[name] = path
    return folders


def _merge_pair(folders: list[Path], alphas: list[float], out: Path) -> dict[str, Path]:
    if len(folders) != 2:
        raise ConfigError(f"--alphas averages two models, the MLE and the CPO model, but MODELS names {len(folders)}")
    mle, cpo = folders
    return merge_alphas(mle, cpo, alphas, out)


def _whole_models(folders: dict[str, Path], scratch: Path) -> contextlib.AbstractContextManager[dict[str, Path]]:
    from cpo_ray.training.adapter_merging import whole_models

    return whole_models(folders, scratch, lambda line: say(escape(line)))


def _shortest_context(folders: list[Path]) -> int:
    from cpo_ray.serving.deployments import read_context

    return min(read_context(folder) for folder in folders)


@contextlib.contextmanager
def _with_key_file(config: ServingConfig) -> Iterator[ServingConfig]:
    """The configuration; if there is no key yet, with a new one in a private file, where the user can read it."""
    from cpo_ray.serving.auth import choose_key

    if config.key_file or os.environ.get(config.key_variable, "").strip():
        yield config
        return
    key = choose_key(config.host, config.key_variable)
    with tempfile.TemporaryDirectory(prefix="cpo-ray-") as folder:  # only its owner can read it
        file = Path(folder) / "key"
        file.touch(mode=0o600)
        file.write_text(key, encoding="utf-8")
        say(f"while the endpoint runs, its key is in {escape(str(file))}")
        yield config.model_copy(update={"key_file": file})


def _serve_until_signal(folders: dict[str, Path], config: ServingConfig, tokens: int, gpus: int) -> None:
    from cpo_ray.serving.app import drain, serve_models

    up = serve_models(folders, config, tokens, gpus, lambda name: say(f"[green]up[/] {escape(name)}"))
    stop = threading.Event()
    with _on_signals(_interrupt), up as endpoint:
        with _on_signals(stop.set):
            say(f"serving at [bold]{escape(endpoint.url)}[/]: {escape(', '.join(folders))}; Ctrl-C stops it")
            stop.wait()
        say("finishing active requests; a second Ctrl-C stops at once")
        left = drain(endpoint, config.drain_timeout_s)
        if left:
            say(f"[yellow]{left} requests did not finish within serving.drain_timeout_s {config.drain_timeout_s:g}[/]")


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _on_signals(action: Callable[[], None]) -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT call only `action`."""
    before = {number: signal.signal(number, lambda *_: action()) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
