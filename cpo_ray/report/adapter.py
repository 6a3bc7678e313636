"""A run's adapter in its model cards: what was trained, and how the models are loaded."""

from collections.abc import Mapping
from typing import Any


def describe_adapter(config: Mapping[str, Any]) -> str | None:
    """A line for the section Training; None for a run without an adapter."""
    adapter = config.get("adapter")
    if not adapter:
        return None
    targets = "every linear layer" if adapter["targets"] == "auto" else ", ".join(adapter["targets"])
    line = f"- Adapter (LoRA): rank {adapter['rank']}, alpha {adapter['alpha']:g}, in {targets}"
    if adapter["quantize"]:
        line += f", the frozen layers in {adapter['quantize']}"
    if not (config.get("model") or {}).get("path"):
        line += "; the reference was trained whole"
    return line


def loading_code(config: Mapping[str, Any], model: str) -> tuple[str, str]:
    """Python that imports and that loads a model: by peft if its directory holds an adapter alone."""
    if (config.get("adapter") or {}).get("export") == "adapter" and model != "reference":
        imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        return imports, 'AutoPeftModelForCausalLM.from_pretrained("PATH/adapter")'
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'AutoModelForCausalLM.from_pretrained("PATH")',
    )
