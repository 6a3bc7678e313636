"""Whole models from adapters and their bases, on the CPU of the driver: after training, or for as long as they are served."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from transformers import AutoConfig

from cpo_ray.artifacts.adapter_files import is_adapter_alone
from cpo_ray.objective.adapters import merged_weights
from cpo_ray.objective.pretrained import DTYPES, load_adapted
from cpo_ray.training.models import export_model

PREFIX = ".merged-"


@contextlib.contextmanager
def whole_models(models: Mapping[str, Path], scratch: Path, say: Callable[[str], None]) -> Iterator[dict[str, Path]]:
    """The models by name, those that are adapters alone merged into a temporary folder below `scratch`.

    vLLM and the weight switch read merged weights alone. scratch: a folder that all machines of the cluster see. say: called
    with a line for the user if models are merged, which takes the memory of one model and the disk space of all.
    """
    alone = {name: folder for name, folder in models.items() if is_adapter_alone(folder)}
    if not alone:
        yield dict(models)
        return
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=PREFIX) as temporary:
        say(f"merging {', '.join(alone)} into their base, to serve them")
        for name, folder in alone.items():
            merge_adapter(folder, Path(temporary) / name)
        yield {name: Path(temporary) / name if name in alone else folder for name, folder in models.items()}


def remove_left_over(scratch: Path) -> None:
    """Remove the merged models of a killed process below `scratch`, a folder that no other process serves from."""
    for folder in scratch.glob(f"{PREFIX}*"):
        shutil.rmtree(folder)


def merge_adapter(folder: Path, out: Path) -> float:
    """Write the model directory `folder`, which holds an adapter, with merged weights, as a whole model. `out` may be `folder`.

    Returns the share of the adapter's change that rounding took away: see `MergedWeights.lost`. Raises TrainingError if the
    base of the adapter cannot be loaded.
    """
    stored = AutoConfig.from_pretrained(folder, trust_remote_code=False).dtype
    precision = next((name for name, dtype in DTYPES.items() if dtype == stored), "fp32")
    model = load_adapted(folder, precision)
    merged = merged_weights(model, consume=True)
    export_model(model, merged.tensors, folder, out)
    return merged.lost
