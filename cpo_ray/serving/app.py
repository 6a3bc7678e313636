"""Serve models at one OpenAI-compatible endpoint: Ray Serve, with one vLLM engine per model or one for all models."""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cpo_ray.config import ServingConfig
from cpo_ray.errors import ServiceError
from cpo_ray.inference.weight_files import check_one_set_of_weights
from cpo_ray.serving.auth import CONTROL_DIGEST_VARIABLE, DIGEST_VARIABLE, DRAIN_ROUTE, choose_key, digest
from cpo_ray.serving.compatibility import check_compatible
from cpo_ray.serving.deployments import build_application, name_deployments, read_vocabulary
from cpo_ray.serving.gateway import SETTINGS_VARIABLE, GatewaySettings

APPLICATION = "cpo-ray"
POLL_S = 1.0


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint. `url` ends in /v1; `key` is for `Authorization: Bearer`; `control` is the key of the drain route."""

    url: str
    key: str = field(repr=False)
    control: str = field(repr=False, default="")

    @property
    def root(self) -> str:
        """The URL below which /health, /ready and /metrics are."""
        return self.url.removesuffix("/v1")


@contextlib.contextmanager
def serve_models(
    models: dict[str, Path],
    config: ServingConfig,
    max_model_len: int,
    gpus_per_engine: float,
    on_ready: Callable[[str], None] | None = None,
) -> Iterator[Endpoint]:
    """Serve `models` (name -> Hugging Face directory) until the block ends. Ray must be initialised.

    `max_model_len` is in tokens, prompt and answer together; `gpus_per_engine` 0 means CPU. `on_ready(name)` is called as
    soon as the model has answered a request. Every route requires the key. With `config.in_place` one engine serves all
    models and loads the weights of the requested one. Raises ServiceError if the host requires a key chosen by the user, if
    the port is taken, if Ray Serve already runs on the cluster, or if a model is not ready within `config.start_timeout_s`
    (with Serve's reason); ArtifactError if a directory holds two sets of weights, or if the models cannot share an engine, with
    the differences.
    """
    if not models:
        raise ServiceError("no models to serve")
    key, control = choose_key(config.host, config.key_variable, config.key_file), secrets.token_urlsafe(32)
    port = choose_port(config.host, config.port)
    deployments = {name: f"LLMServer:{part}" for name, part in name_deployments(models, bool(config.in_place)).items()}
    vocabularies = {name: read_vocabulary(path) for name, path in models.items()}
    settings = GatewaySettings(vocabularies, deployments, max_model_len, config.limits, config.no_repeat_ngram)
    for path in models.values():
        check_one_set_of_weights(path)
    first, *others = models.values()
    for other in others if config.in_place else ():
        check_compatible(first, other, "share one engine")

    from ray import serve

    if serve.status().proxies:
        raise ServiceError(
            "Ray Serve already runs on this cluster, so its endpoint cannot be given this run's key. "
            "Wait for the other run, or stop it with `serve shutdown`."
        )
    deadline = time.monotonic() + config.start_timeout_s
    endpoint = Endpoint(_url(config.host, port), key, control)
    try:
        _start_proxy(config.host, port, endpoint, settings)
        application = build_application(models, config, max_model_len, gpus_per_engine)
        target = serve.RunTarget(target=application, name=APPLICATION, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
        _wait_until_ready(endpoint, deployments, deadline, on_ready or (lambda _: None))
        yield endpoint
    finally:
        serve.shutdown()


def _start_proxy(host: str, port: int, endpoint: Endpoint, settings: GatewaySettings) -> None:
    """Start Serve's proxy on the head, with the gateway and the key check around it."""
    from ray import serve
    from ray.serve.schema import LoggingConfig

    environment = {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cpo_ray.serving.gateway.guard_middlewares",
        DIGEST_VARIABLE: digest(endpoint.key),
        CONTROL_DIGEST_VARIABLE: digest(endpoint.control),
        SETTINGS_VARIABLE: settings.dump(),
    }
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port},
        logging_config=LoggingConfig(enable_access_log=False),
        controller_options={"runtime_env": {"env_vars": environment}},
    )


def drain(endpoint: Endpoint, timeout_s: float) -> int:
    """Make the endpoint refuse new requests (503), wait for the running ones, return how many are left after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    headers = {"Authorization": f"Bearer {endpoint.control}"}
    with httpx.Client(headers=headers, trust_env=False, timeout=10) as client:
        while True:
            left = int(client.post(f"{endpoint.root}{DRAIN_ROUTE}").raise_for_status().json()["under_way"])
            if left == 0 or time.monotonic() > deadline:
                return left
            time.sleep(POLL_S / 4)


def choose_port(host: str, port: int) -> int:
    """A free TCP port of this machine: `port`, or any free one if it is 0.

    Raises ServiceError if the endpoint cannot listen on it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As Serve does, so that connections in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"the endpoint cannot listen on {host}, port {port}: {error.strerror}. Choose another --port or --host "
                "(serving.port, serving.host); port 0 chooses a free one."
            ) from None
        return int(probe.getsockname()[1])


def _wait_until_ready(
    endpoint: Endpoint, deployments: dict[str, str], deadline: float, on_ready: Callable[[str], None]
) -> None:
    from ray import serve

    pending = dict(deployments)
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    with httpx.Client(base_url=endpoint.url, headers=headers, trust_env=False) as client:
        while pending:
            application = serve.status().applications.get(APPLICATION)
            states = {} if application is None else application.deployments
            for name, deployment in list(pending.items()):
                state = states.get(deployment)
                if state is not None and state.status == "HEALTHY" and _answers(client, name, deadline):
                    del pending[name]
                    on_ready(name)
            # UNHEALTHY is not a failure: a replica was lost, and Serve starts another.
            failed = application is not None and application.status == "DEPLOY_FAILED"
            if pending and (failed or time.monotonic() > deadline):
                raise ServiceError(_explain_failure(pending, application, failed))
            time.sleep(POLL_S)
    if httpx.get(f"{endpoint.url}/models", trust_env=False, timeout=30).status_code != httpx.codes.UNAUTHORIZED:
        raise ServiceError(f"{endpoint.url} answers without its key; it was shut down")


def _answers(client: httpx.Client, model: str, deadline: float) -> bool:
    timeout = max(1.0, deadline - time.monotonic())
    try:
        listed = client.get("/models", timeout=timeout)
        if listed.status_code != httpx.codes.OK or model not in {card["id"] for card in listed.json()["data"]}:
            return False
        body = {"model": model, "prompt": [0], "max_tokens": 1, "temperature": 0}
        return client.post("/completions", json=body, timeout=timeout).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _explain_failure(pending: dict[str, str], application: Any, failed: bool) -> str:
    """One line per model that is not ready, with Serve's status and message."""
    lines = [f"not ready {'(Serve gave up)' if failed else 'in time (serving.start_timeout_s)'}: {', '.join(pending)}"]
    for name, deployment in pending.items():
        state = application.deployments.get(deployment) if application is not None else None
        if state is not None:
            lines.append(f"  {name}: {state.status}: {_last_lines(state.message)}")
    if application is not None and application.message:
        lines.append(f"  Ray Serve: {_last_lines(application.message)}")
    return "\n".join(lines)


def _last_lines(message: str) -> str:
    """The last lines of a traceback: the exception, without the frames."""
    kept = [line.strip() for line in message.splitlines() if line.strip()]
    return " | ".join(kept[-3:])[-600:] or "no reason given"


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{reachable}]:{port}/v1" if ":" in reachable else f"http://{reachable}:{port}/v1"
