"""Does the section `adapter` fit the model and this machine? Checked before anything is downloaded or trained."""

import importlib.util

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cpo_ray.config import RunConfig
from cpo_ray.errors import ConfigError, TrainingError
from cpo_ray.objective.adapters import find_targets
from cpo_ray.objective.quantization import quantized_layers
from cpo_ray.training.models import configured_shape

VOCABULARY = 8  # of the model whose layers are looked at: names do not depend on it
REMEDY = "pip install bitsandbytes, or leave adapter.quantize out"


def check_adapter(config: RunConfig) -> str | None:
    """Raise ConfigError for a target that the model does not have, and for nf4 if it cannot run where the configuration says.

    Returns a line if nf4 is for CUDA devices and this machine lacks its package: they may be other machines. A model that is
    not on this machine is checked when it is loaded.
    """
    adapter = config.adapter
    if adapter is None:
        return None
    missing = adapter.quantize is not None and importlib.util.find_spec("bitsandbytes") is None
    if missing and 0 in (config.cluster.gpus, config.cluster.gpus_per_worker):
        raise ConfigError(
            f"adapter.quantize {adapter.quantize} needs CUDA devices (this run has none), or on CPUs the package "
            f"bitsandbytes, which is not in the CPU set: {REMEDY}"
        )
    model = _without_weights(config)
    if model is not None:
        try:
            find_targets(model, None if adapter.targets == "auto" else adapter.targets)
            if adapter.quantize is not None:
                quantized_layers(model)
        except TrainingError as error:
            raise ConfigError(str(error)) from None
    if missing:
        return (
            f"adapter.quantize {adapter.quantize} needs the package bitsandbytes on every machine of the run, and it is not "
            f"installed here. It is in the CUDA set: make install GPU=1, or {REMEDY}"
        )
    return None


def _without_weights(config: RunConfig) -> PreTrainedModel | None:
    if config.model.path is None:
        shape = configured_shape(config.model, VOCABULARY)
    else:
        try:
            shape = AutoConfig.from_pretrained(config.model.path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError):
            return None
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(shape)
    return model
