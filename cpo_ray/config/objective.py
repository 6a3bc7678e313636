"""The loss of stage `cpo`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cpo_ray.config.section import Section

LOSS_NAMES = {
    "cpo": "CPO", "infonca": "InfoNCA", "nca": "NCA", "lipo": "LiPO", "listwise": "listwise softmax", "simpo": "SimPO",
}  # fmt: skip
"""`objective.loss` -> its name in messages and reports."""
REWARDED = ("infonca", "nca", "lipo", "listwise")
"""Losses that read a reward of every candidate (`objective.scores`)."""


class ObjectiveConfig(Section):
    """The loss of stage `cpo`: by default the paper's (equations 1 and 2)."""

    loss: Literal["cpo", "infonca", "nca", "lipo", "listwise", "simpo"] = "cpo"
    """`cpo`: the paper's, with K = 2 DPO. `infonca` and `nca` (Chen et al. 2024): noise contrastive alignment with rewards.
    `lipo` (LiPO-lambda, Liu et al. 2024): every pair, weighted as in LambdaRank. `listwise`: softmax cross-entropy with each
    candidate's share of the scores. `simpo` (Meng et al. 2024): log-probs per token, without a reference. See
    [Training](training.md#other-objectives)."""
    beta: Annotated[float, Field(gt=0)] = 5.0
    """How strongly the policy is kept near the reference (the paper: 5)."""
    ranked: bool = True
    """True: Plackett-Luce over all K candidates by rank (equation 2). False: only the gold against the rest (equation 1)."""
    mle_weight: Annotated[float, Field(ge=0)] = 0.0
    """`alpha` of the paper's joint loss `alpha * MLE + CPO`; 0 is CPO alone. MLE is here the negative log-likelihood of the
    sequence: summed over its tokens and averaged over prompts, as CPO's scores are. Compared by their gradients in the
    log-probs, 1 is little beside a `beta` of 5; `mle_gradient_share` in `metrics.jsonl` is the MLE term's share."""
    length_normalised: bool = False
    """Compare log-probs per token instead of sums, so that long candidates weigh no more than short ones. Not in the paper.
    Scores are then smaller by a factor of the length, so `beta` should be larger by it."""
    gold_floor_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a penalty per nat by which the gold is less likely than under the reference (DPO-Positive). Not in the paper;
    it counters likelihood displacement."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """For `cpo` and `simpo`: the probability that the labels are wrong and another candidate is the best, each as likely. With
    K = 2 this is conservative DPO (cDPO). With ranks, at every place of the ranking."""
    scores: Literal["rank", "similarity", "given"] = "rank"
    """For `infonca`, `nca`, `lipo` and `listwise`, the reward of a candidate: by its `rank`, from 1 for the first to 0 for the
    last in equal steps; its `similarity` to the gold; or `given` by the data, where answers come with scores."""
    score_temperature: Annotated[float, Field(gt=0)] = 1.0
    """For `infonca`, `nca` and `lipo`: scores are divided by it (`alpha` of Chen et al.). A lower one makes more of a
    difference; near 0 `infonca` is `cpo` without ranks."""
    gamma: Annotated[float, Field(ge=0)] = 0.0
    """For `simpo`: the target margin, by which the gold should be ahead, on the scale of `beta` times a log-prob per token. Its
    authors use a `beta` of 2 to 2.5 with a `gamma` of 0.3 to 0.8 times that."""

    @property
    def rewarded(self) -> bool:
        """Whether the loss reads a reward of every candidate."""
        return self.loss in REWARDED

    @property
    def gold_against_rest(self) -> bool:
        """Whether the loss compares the gold alone with all others, as if these were equally bad."""
        return not self.rewarded and not self.by_ranks

    @property
    def by_ranks(self) -> bool:
        """Whether the loss is the paper's with ranks (equation 2)."""
        return self.loss == "cpo" and self.ranked

    @model_validator(mode="after")
    def _check(self) -> "ObjectiveConfig":
        rewarded = " or ".join(REWARDED)
        for key, default, losses, instead in (
            ("label_smoothing", 0.0, ("cpo", "simpo"), "a higher score_temperature softens targets"),
            ("scores", "rank", REWARDED, f"cpo reads ranks (ranked: true). Set loss to {rewarded}, or remove it"),
            ("score_temperature", 1.0, ("infonca", "nca", "lipo"), f"set loss to {rewarded}, or remove it"),
            ("gamma", 0.0, ("simpo",), "set loss: simpo, or remove it"),
        ):
            value = getattr(self, key)
            if value != default and self.loss not in losses:
                raise ValueError(f"{key} {value} has no effect with loss: {self.loss}: {instead}")
        if self.loss == "listwise" and self.scores == "similarity":
            raise ValueError(
                "loss: listwise with scores: similarity: a share needs scores of at least 0, and a cosine can be negative. "
                "loss: infonca takes any scores"
            )
        if self.loss == "simpo" and self.length_normalised:
            raise ValueError("length_normalised: loss: simpo is per token already, remove it")
        if self.loss == "simpo" and self.gold_floor_weight:
            raise ValueError(
                f"gold_floor_weight {self.gold_floor_weight:g} compares with the reference, which loss: simpo does without. "
                "mle_weight holds the gold's likelihood up instead"
            )
        return self
