"""A causal language model from a Hugging Face directory or the hub, or a message that says what is missing."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from cpo_ray.errors import TrainingError
from cpo_ray.objective.known_architectures import architecture_fault


def load_causal_lm(
    source: str | Path, dtype: torch.dtype, adjust: Callable[[PreTrainedConfig], None] = lambda _: None
) -> PreTrainedModel:
    """Safetensors only, no remote code, the attention that transformers has for it. Raises TrainingError.

    adjust: may change the configuration before the model is built from it.
    """
    try:
        fault = architecture_fault(source, PreTrainedConfig.get_config_dict(source)[0])
        if fault is not None:
            raise TrainingError(fault)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        adjust(config)
        return AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot load the model {source}: {error}") from None
    except ImportError as error:
        raise TrainingError(f"cannot load the model {source}, a package is missing: {error}") from None
