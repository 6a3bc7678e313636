import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cpo_ray.serving.app import Endpoint
from tests.commands.command_line import invoke
from tests.serving.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return write_tiny_llama(root / "mle", seed=1), write_tiny_llama(root / "cpo", seed=2)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The arguments of the endpoint, which gets a signal to stop as soon as it is up."""
    calls: dict[str, Any] = {"drained": 0}

    @contextlib.contextmanager
    def serve_models(folders: Any, config: Any, tokens: int, gpus: int, on_ready: Any) -> Iterator[Endpoint]:
        key = config.key_file.read_text() if config.key_file else ""
        calls.update(folders=folders, config=config, tokens=tokens, gpus=gpus, key=key)
        threading.Timer(0.2, os.kill, (os.getpid(), calls.get("signal", signal.SIGTERM))).start()
        yield Endpoint("http://127.0.0.1:1/v1", "key", "control")
        calls["closed"] = True

    def drain(endpoint: Endpoint, timeout_s: float) -> int:
        calls["drained"] = timeout_s
        return 2

    monkeypatch.setattr("cpo_ray.serving.app.serve_models", serve_models)
    monkeypatch.setattr("cpo_ray.serving.app.drain", drain)
    monkeypatch.setattr("cpo_ray.cluster.session.LazyRay.ensure", lambda _: None)
    monkeypatch.delenv("CPO_RAY_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_lets_active_requests_finish(
    models: tuple[Path, Path], served: dict[str, Any], number: signal.Signals
) -> None:
    served["signal"] = number
    before = signal.getsignal(number)
    result = invoke("serve", models[0], f"policy={models[1]}", "--in-place", "--port", 0, "--set", "drain_timeout_s=7")
    assert result.exit_code == 0, result.output
    assert served["folders"] == {"mle": models[0], "policy": models[1]}
    assert (served["config"].in_place, served["config"].port, served["tokens"], served["gpus"]) == (True, 0, 256, 0)
    assert (served["drained"], served["closed"]) == (7, True)
    assert "2 requests did not finish within serving.drain_timeout_s 7" in result.stdout
    assert signal.getsignal(number) is before


def test_a_new_key_is_in_a_private_file_and_nowhere_else(models: tuple[Path, Path], served: dict[str, Any]) -> None:
    result = invoke("serve", models[0])
    assert len(served["key"]) > 30
    assert served["key"] not in result.output
    assert str(served["config"].key_file) in "".join(result.stdout.split())
    assert not served["config"].key_file.exists()


def test_the_key_in_the_environment_is_used(
    models: tuple[Path, Path], served: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPO_RAY_API_KEY", "mine")
    assert invoke("serve", models[0]).exit_code == 0
    assert served["config"].key_file is None


def test_alphas_are_merged_and_served_beside_their_models(
    models: tuple[Path, Path], served: dict[str, Any], tmp_path: Path
) -> None:
    result = invoke("serve", *models, "--alphas", 0.3, 0.7, "--merged", tmp_path / "sweep")
    assert result.exit_code == 0, result.output
    assert list(served["folders"]) == ["mle", "cpo", "merged-0.30", "merged-0.70"]
    assert (served["folders"]["merged-0.30"] / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("MLE", "MLE"), 2, "the name 'mle' is taken"),
        (("=MLE",), 2, "'' is not a valid model name"),
        (("a b=MLE",), 2, "'a b' is not a valid model name"),
        (("nowhere",), 2, "is not a model directory"),
        (("MLE", "--alphas", "0.5"), 2, "averages two models"),
        (("MLE", "CPO", "--alphas", "1.5"), 2, "less than or equal to 1"),
        (("MLE", "--set", "limits.requezts=3"), 2, "did you mean `serving.limits.requests`?"),
        (("MLE", "--set", "min_replicas=3"), 2, "min_replicas 3 exceeds max_replicas 1"),
        (("MLE", "--host", "0.0.0.0"), 1, "you must choose the endpoint's key"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_starts(
    models: tuple[Path, Path], served: dict[str, Any], words: tuple[str, ...], code: int, message: str
) -> None:
    places = {"MLE": str(models[0]), "CPO": str(models[1]), "=MLE": f"={models[0]}", "a b=MLE": f"a b={models[0]}"}
    result = invoke("serve", *(places.get(word, word) for word in words))
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert "folders" not in served
