"""Stage `merging`: average the weights of the MLE and the CPO model, once per alpha."""

from functools import partial

from cpo_ray.config import RunConfig
from cpo_ray.stages.record import Output, Stage, StageRun


def merged_models(config: RunConfig) -> list[str]:
    """Names of the merged models, one per alpha."""
    return [config.merging.model_name(alpha) for alpha in config.merging.alphas]


MERGED = Output("models/{model}", reads=("models/mle", "models/cpo"), models=merged_models)


def merge(stage: StageRun) -> None:
    """Write one model per alpha (the paper's weight-space ensemble)."""
    from cpo_ray.serving.merging import merge_models

    mle, cpo = stage.read("models/mle"), stage.read("models/cpo")
    for name, alpha in zip(merged_models(stage.config), stage.config.merging.alphas, strict=True):
        stage.make(MERGED.named(name), partial(merge_models, mle.path, cpo.path, alpha), {"alpha": alpha})


MERGING = Stage("merging", "average the weights of both, once per alpha", (MERGED,), merge)
