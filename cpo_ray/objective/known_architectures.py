"""Which architectures the installed transformers has as causal language models, and what to install for another one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def architecture_fault(source: str | Path, config: Mapping[str, Any]) -> str | None:
    """Why the model at `source` cannot be built from this config.json, with a remedy. None if it can.

    Only the `model_type` is read; without one, transformers guesses it.
    """
    import transformers  # here, with the tables, because it takes seconds
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind is None or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None
    version = f"transformers {transformers.__version__}"
    if kind in CONFIG_MAPPING_NAMES:
        return f"the model {source} is a `{kind}`, which {version} has as no causal language model"
    names = ", ".join(config.get("architectures") or []) or "no class named"
    remedy = "install a version that has it: pip install --upgrade transformers"
    if "auto_map" in config:
        remedy = f"it comes with code of its own, which is not run: use a `{kind}` that transformers has, or {remedy}"
    return f"the model {source} is a `{kind}` ({names}), which {version} does not know; {remedy}"
