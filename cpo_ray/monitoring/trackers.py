"""Send training metrics to TensorBoard, Weights & Biases and MLflow, besides metrics.jsonl."""

import contextlib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from cpo_ray.config import RunConfig
from cpo_ray.errors import ConfigError

LogFunction = Callable[[dict[str, float], int], None]


class Tracker:
    """Sends each step's metrics to all configured trackers."""

    def __init__(self, logs: list[LogFunction]) -> None:
        self.logs = logs

    def log(self, metrics: dict[str, Any]) -> None:
        """Send one row of metrics.jsonl, named `training/...`, or `validation/...` for a validation."""
        part = "validation" if "validation" in metrics else "training"
        numbers = flatten(metrics.get("validation", metrics), part)
        for log in self.logs:
            log(numbers, metrics["step"])


def flatten(metrics: dict[str, Any], prefix: str) -> dict[str, float]:
    """`{"loss": 1, "negative_logp": {"batch": 2}}` -> `{"training/loss": 1, "training/negative_logp/batch": 2}`."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}/{name}")
        elif isinstance(value, (int, float)) and name != "step":
            flat[f"{prefix}/{name}"] = float(value)
    return flat


@contextlib.contextmanager
def track(config: RunConfig, root: Path, stage: str) -> Iterator[Tracker]:
    """Open the configured trackers for one training and close them after it.

    Raises ConfigError if the package of a configured tracker is not installed.
    """
    tracking = config.tracking
    with contextlib.ExitStack() as stack:
        logs = []
        if tracking.tensorboard:
            logs.append(stack.enter_context(_tensorboard(root / "tensorboard" / stage)))
        if tracking.wandb_project is not None:
            logs.append(stack.enter_context(_wandb(tracking.wandb_project, config, stage)))
        if tracking.mlflow_uri is not None:
            logs.append(stack.enter_context(_mlflow(tracking.mlflow_uri, config, stage)))
        yield Tracker(logs)


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[LogFunction]:
    from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

    with SummaryWriter(str(folder)) as writer:

        def log(numbers: dict[str, float], step: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        yield log


@contextlib.contextmanager
def _wandb(project: str, config: RunConfig, stage: str) -> Iterator[LogFunction]:
    wandb = _import("wandb", "tracking.wandb_project", "wandb")
    settings = config.model_dump(mode="json")
    with wandb.init(project=project, group=config.name, name=f"{config.name}-{stage}", config=settings) as run:
        yield lambda numbers, step: run.log(numbers, step=step)


@contextlib.contextmanager
def _mlflow(uri: str, config: RunConfig, stage: str) -> Iterator[LogFunction]:
    mlflow = _import("mlflow", "tracking.mlflow_uri", "mlflow-skinny")
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(config.name)
    with mlflow.start_run(run_name=f"{config.name}-{stage}"):
        mlflow.log_dict(config.model_dump(mode="json"), "config.json")
        yield lambda numbers, step: mlflow.log_metrics(numbers, step=step)


def _import(module: str, key: str, package: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise ConfigError(f"{key} is set, but {module} is not installed: pip install {package}") from None
