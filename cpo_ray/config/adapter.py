"""Low-rank adapters (LoRA, QLoRA) for stages `reference`, `cpo` and `mle`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from cpo_ray.config.section import Section


class AdapterConfig(Section):
    """LoRA: the model's weights stay frozen, and low-rank matrices beside its linear layers are trained. `{}` switches it on.

    `reference` trains an adapter of `model.path`; `cpo` and `mle` continue with it. A reference from random weights (without
    `model.path`) is trained whole, and `cpo` and `mle` each train an adapter of it."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of a layer's change: a layer from `n` to `m` numbers gets `rank * (n + m)` trained ones."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """A layer's change is multiplied by `alpha / rank`."""
    targets: Literal["auto"] | tuple[str, ...] = "auto"
    """The layers with an adapter, by the last part of their name (`q_proj`) or the whole name. `auto`: every linear layer of
    the transformer blocks, not the embedding nor the LM head. Training prints which."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapter's first matrix, in training steps alone: never in scoring, validation or the check of the
    first loss."""
    quantize: Literal["nf4"] | None = None
    """`nf4`: keep the frozen linear layers in 4 bits (QLoRA), about a quarter of bf16. Needs `model.path`, a `zero_stage` below
    3, and the package bitsandbytes, which is in the CUDA set. Default: in the model's precision."""
    export: Literal["merged", "adapter"] = "merged"
    """What stages `cpo`, `mle` and `merging` write. `merged`: whole models, whose weights have the adapter added and
    are rounded to `precision`, with the adapter in their folder `adapter/`. `adapter`: that folder, without weights of the
    base; they are merged for the time that they are served."""

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: Literal["auto"] | tuple[str, ...]) -> Literal["auto"] | tuple[str, ...]:
        if targets == ():
            raise ValueError("targets is empty, so nothing would be trained: name layers, or give auto")
        if targets != "auto" and len(set(targets)) < len(targets):
            raise ValueError(f"targets {list(targets)} name one layer twice")
        return targets
