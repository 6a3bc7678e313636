"""Names of base models, data and training methods. The paper's methods have its names: MLE, PSS, DPO, AN, ANR, ..., MixNR."""

from collections.abc import Mapping
from typing import Any

from cpo_ray.config import SampledKind
from cpo_ray.config.objective import LOSS_NAMES
from cpo_ray.config.sampled_kinds import PAPER_DECODING

BASELINE = "mle"
PLAIN = "MLE"
MIXN = {"batch": 3, "meanfield": 5, "truncation": 3}  # the paper's mixture, and the only one that it names
DEFAULT_LOSS = "cpo"
SHORT = {
    "autoregressive": "AN",
    "batch": "BN",
    "meanfield": "MN",
    "truncation": "TN",
    "unhelpful": "UN",
    "answer": "answers",
}
PAPER = {"MLE", "PSS", "DPO", *(f"{kind}{ranked}" for kind in ("AN", "BN", "MN", "TN", "MixN") for ranked in ("", "R"))}


def name_method(config: Mapping[str, Any], model: str) -> str:
    """Return the method of a model: `mle`, `cpo` and `merged-0.30` (same method as `cpo`) are mapped; others keep their name.

    `R` at the end: candidates are ranked. `streamed` and `on-policy`: negatives were sampled during training, from the
    reference or from the policy. `in 3 rounds`: twice the policy became the reference. K = 2 with one unhelpful answer is
    DPO, ranked or not. A mixture other than the paper's is named by its counts, e.g. `3AN+1BN+2MN+1TNR`. Answers that the
    data ranks are a kind too (at most so many); two of them are DPO. A configuration without either gives `CPO`. Another
    loss than the paper's comes first and has no R: `InfoNCA MixN`, `SimPO UN`.
    """
    if model == BASELINE:
        return "PSS" if (config.get("mle") or {}).get("scheduled_sampling") else PLAIN
    if model != "cpo" and not model.startswith("merged-"):
        return model
    sampling = config.get("sampling") or {}
    counts = {kind: count for kind, count in (sampling.get("negatives") or {}).items() if count}
    answers = ranked_answers(config)
    counts = ({"answer": answers - 1} if answers else {}) | counts
    objective = config.get("objective") or {}
    weight = objective.get("mle_weight", 0)
    joint = f" + {weight:g} MLE" if weight else ""
    smoothing = objective.get("label_smoothing", 0)
    joint = (f" smoothed {smoothing:g}" if smoothing else "") + joint
    loss = objective.get("loss", DEFAULT_LOSS)
    name = LOSS_NAMES.get(loss, loss)
    if not counts:
        return name + joint
    if loss == DEFAULT_LOSS and counts in ({"unhelpful": 1}, {"answer": 1}):
        return "DPO" + joint
    while_training = " on-policy" if sampling.get("refresh_steps") else " streamed" if sampling.get("stream") else ""
    while_training += " with a moving reference" if sampling.get("refresh_reference") else ""
    while_training += f" in {rounds} rounds" if (rounds := config.get("rounds", 1)) > 1 else ""
    if loss != DEFAULT_LOSS:
        return f"{name} {_name_negatives(counts)}{while_training}{joint}"
    return _name_negatives(counts) + ("R" if objective.get("ranked") else "") + while_training + joint


def _name_negatives(counts: Mapping[str, int]) -> str:
    """Return the name of one kind, MixN, or the counts of a mixture: the paper's order, then the user's kinds."""
    if len(counts) == 1:
        return next(SHORT.get(kind, kind) for kind in counts)
    if counts == MIXN:
        return "MixN"
    kinds = [*(kind for kind in SHORT if kind in counts), *(kind for kind in counts if kind not in SHORT)]
    return "+".join(f"{counts[kind]}{SHORT.get(kind, kind)}" for kind in kinds)


def ranked_answers(config: Mapping[str, Any]) -> int:
    """Return the most answers per prompt that the data ranks; 0 if it ranks none."""
    data = config.get("data") or {}
    sources = [data, *(data.get("sources") or ())]
    return int(data.get("max_answers", 0)) if any(source.get("source") == "preferences" for source in sources) else 0


def describe_negatives(config: Mapping[str, Any]) -> str:
    """Return the counts of negatives, with the parameters of kinds that vLLM does not sample as the paper does."""
    sampling = config.get("sampling") or {}
    own = {key: sampling[key] for key in PAPER_DECODING._fields if key in sampling}
    decodings = {"autoregressive": PAPER_DECODING._replace(**own)}
    for name, source in (sampling.get("kinds") or {}).items():
        if isinstance(source, Mapping):
            decodings[name] = SampledKind.model_validate(source).decoding(decodings["autoregressive"])
    return ", ".join(
        f"{count} {kind}" + (f" ({decodings[kind]})" if decodings.get(kind, PAPER_DECODING) != PAPER_DECODING else "")
        for kind, count in (sampling.get("negatives") or {}).items()
        if count
    )


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
