"""A causal language model from a Hugging Face directory or the hub, or a message that says what is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cpo_ray.errors import TrainingError


def load_causal_lm(
    source: str | Path, dtype: torch.dtype, adjust: Callable[[PreTrainedConfig], None] = lambda _: None
) -> PreTrainedModel:
    """Safetensors only, no remote code, the attention that transformers has for it. Raises TrainingError.

    adjust: may change the configuration before the model is built from it.
    """
    try:
        check_architecture(source, PreTrainedConfig.get_config_dict(source)[0])
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        adjust(config)
        return AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot load the model {source}: {error}") from None
    except ImportError as error:
        raise TrainingError(f"cannot load the model {source}, a package is missing: {error}") from None


def check_architecture(source: str | Path, config: dict[str, Any]) -> None:
    """Raise TrainingError for a config.json whose architecture the installed transformers does not have."""
    kind = config.get("model_type")
    version = f"transformers {transformers.__version__}"
    if kind is None or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return  # without a type, transformers guesses it
    if kind in CONFIG_MAPPING_NAMES:
        raise TrainingError(f"the model {source} is a `{kind}`, which {version} has as no causal language model")
    names = ", ".join(config.get("architectures") or []) or "no class named"
    remedy = "install a version that has it: pip install --upgrade transformers"
    if "auto_map" in config:
        remedy = f"it comes with code of its own, which is not run: use a `{kind}` that transformers has, or {remedy}"
    raise TrainingError(f"the model {source} is a `{kind}` ({names}), which {version} does not know; {remedy}")
