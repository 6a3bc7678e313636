"""The mathematics of CPO in plain PyTorch: token trees, log-probs, losses. No Ray, no vLLM.

For a training loop of one's own: `pack` K candidates per prompt, `candidate_logps` of a transformers model, `cpo_loss`. What is
exported here is stable. Everything is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpo_ray.objective.check import settle_layout as check_packing
    from cpo_ray.objective.logprobs import candidate_logps
    from cpo_ray.objective.losses import cpo_loss
    from cpo_ray.objective.packing import pack_groups as pack

__all__ = ["candidate_logps", "check_packing", "cpo_loss", "pack"]

EXPORTED = {
    "candidate_logps": ("logprobs", "candidate_logps"),
    "check_packing": ("check", "settle_layout"),
    "cpo_loss": ("losses", "cpo_loss"),
    "pack": ("packing", "pack_groups"),
}


def __getattr__(name: str) -> Any:
    if name not in EXPORTED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = EXPORTED[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
