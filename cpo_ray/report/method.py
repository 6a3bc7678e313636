"""Names of base models, data and training methods. Methods have the paper's names: MLE, PSS, DPO, AN, ANR to MixN, MixNR."""

from collections.abc import Mapping
from typing import Any

BASELINE = "mle"
PLAIN = "MLE"
SHORT = {"autoregressive": "AN", "batch": "BN", "meanfield": "MN", "truncation": "TN", "unhelpful": "UN"}


def name_method(config: Mapping[str, Any], model: str) -> str:
    """Return the method of a model: `mle`, `cpo` and `merged-0.30` (same method as `cpo`) are mapped; others keep their name.

    `R` at the end: candidates are ranked. `streamed` and `on-policy`: negatives were sampled during training, from the
    reference or from the policy. K = 2 with one unhelpful answer is DPO, ranked or not. A configuration without
    negatives gives `CPO`.
    """
    if model == BASELINE:
        return "PSS" if (config.get("mle") or {}).get("scheduled_sampling") else PLAIN
    if model != "cpo" and not model.startswith("merged-"):
        return model
    sampling = config.get("sampling") or {}
    counts = sampling.get("negatives") or {}
    kinds = [kind for kind, count in counts.items() if count]
    objective = config.get("objective") or {}
    weight = objective.get("mle_weight", 0)
    joint = f" + {weight:g} MLE" if weight else ""
    if not kinds:
        return "CPO" + joint
    if kinds == ["unhelpful"] and counts["unhelpful"] == 1:
        return "DPO" + joint
    name = SHORT.get(kinds[0], kinds[0]) if len(kinds) == 1 else "MixN"
    while_training = " on-policy" if sampling.get("refresh_steps") else " streamed" if sampling.get("stream") else ""
    return name + ("R" if objective.get("ranked") else "") + while_training + joint


def name_base(config: Mapping[str, Any]) -> str:
    """Return the model that a run starts from: a hub id or directory, or the shape of a model trained from scratch."""
    model = config.get("model") or {}
    if model.get("path"):
        return str(model["path"])
    if "layers" not in model:
        return "an unnamed model"
    return f"{model.get('architecture', 'llama')} from scratch, {model['layers']} x {model.get('hidden_size', '?')}"


def name_source(config: Mapping[str, Any]) -> str:
    """Return the source of the prompts."""
    return str((config.get("data") or {}).get("source", "unnamed data"))
