"""Stage `sampling`."""

import re
from typing import Annotated, Any

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from cpo_ray.config.inference import EngineConfig
from cpo_ray.config.negatives import NegativeCounts, UnhelpfulConfig
from cpo_ray.config.sampled_kinds import GREEDY, KindDecoding, SampledKind, Temperature, TopK, TopP
from cpo_ray.config.section import EXECUTION, Auto, Section
from cpo_ray.config.spelling import did_you_mean
from cpo_ray.records import ANSWER, CANDIDATE_KINDS

KindName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
FUNCTION = re.compile(r"\w+(\.\w+)*:\w+")


def _read_kind(value: Any, _: ValidatorFunctionWrapHandler) -> str | SampledKind:
    """A function's name or parameters of vLLM, by the type of the value, so that an error is about what was meant."""
    if isinstance(value, SampledKind) or (isinstance(value, str) and FUNCTION.fullmatch(value)):
        return value
    if isinstance(value, dict):
        return SampledKind.model_validate(value)
    raise ValueError(
        f"a kind is `module:function`, or parameters of vLLM such as `{{temperature: 1.4, top_k: 0, top_p: 1}}`, got {value!r}"
    )


KindSource = Annotated[str | SampledKind, WrapValidator(_read_kind)]


class PoolConfig(Section):
    """A pool of actors of one kind. Its size changes no result."""

    minimum: Annotated[int, Field(ge=1)] = Field(default=1, json_schema_extra=EXECUTION)
    """Actors that run from the start to the end of the stage."""
    maximum: Annotated[int, Field(ge=1)] | None = Field(default=None, json_schema_extra=EXECUTION)
    """Maximum actors, started while they are the bottleneck. Default: `minimum` on a machine without GPUs; with GPUs, as
    many as the cluster's GPUs allow."""
    gpus: Auto[Annotated[float, Field(ge=0)]] = Field(default=None, json_schema_extra=EXECUTION)
    """GPUs of each actor: less than 1 shares a card, 0 is the CPU. `auto`: `cluster.gpus_per_worker`, for an engine
    `tensor_parallel`; less where they [share a card](cluster.md#one-gpu)."""

    @model_validator(mode="after")
    def _check(self) -> "PoolConfig":
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum {self.maximum} is less than minimum {self.minimum}")
        return self


class SamplingConfig(Section):
    """Stage `sampling`: negatives, reference log-probs, ranks."""

    rows: Annotated[int, Field(ge=2)] | None = None
    """Make groups for the first `rows` training rows only. Default: all."""
    negatives: NegativeCounts = NegativeCounts()
    kinds: dict[KindName, KindSource] = Field(default={})
    """Custom kinds of negatives. Name to `module:function`, for instance `{shuffled: mypackage.negatives:shuffled}`; the module
    must be importable on every node. Or name to parameters of vLLM, for instance `{hot: {temperature: 1.4, top_k: 0}}`. See
    [Sampling](sampling.md#a-kind-of-your-own)."""
    redraws: Annotated[int, Field(ge=0)] = 7
    """How often a negative that equals the gold or another candidate of its group is drawn again before it is kept. Greedy
    decoding has no other answer, so a greedy negative is never drawn again."""
    top_k: TopK = 50
    """Top-k of autoregressive negatives (the paper: 50); 0 or -1 is the whole vocabulary."""
    top_p: TopP = 1.0
    """Top-p of autoregressive negatives: the smallest set of tokens with this probability."""
    temperature: Temperature = 1.0
    """Temperature of autoregressive negatives, from 0.01 to 2."""
    meanfield_fraction: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of the gold's tokens that a meanfield negative resamples (the paper: 0.15). At least one token, never EOS."""
    batch_rows: Annotated[int, Field(ge=2)] = 64
    """Prompts per batch, consecutive training rows. Batch negatives of a row are responses of other rows of its batch."""
    shard_rows: Annotated[int, Field(ge=2)] = Field(default=256, json_schema_extra=EXECUTION)
    """Prompts per shard of the groups. A restarted run makes only the missing shards."""
    stream: bool = False
    """Sample while stage `cpo` trains, instead of before: each time a row is used it has new negatives. Only the groups of a
    few steps are kept, for inspection. The prompts of an optimizer step then form the batch, and `batch_rows` is ignored."""
    refresh_steps: Annotated[int, Field(ge=1)] | None = None
    """With `stream`: sample from a snapshot of the policy, one to two times this many steps old, instead of the reference. Its
    weights are loaded into the running engines and scorers. Reference log-probs still come from the reference."""
    refresh_reference: bool = False
    """With `refresh_steps`: the snapshot is the reference too, in the scores and so in the loss. It is then the policy at the
    start of each period of `refresh_steps` steps: training waits for the period's first groups."""
    embedder: str = "minilm"
    """The embedder for ranking: `minilm` (all-MiniLM-L6-v2, bundled), a sentence-transformers directory, or a hub id."""
    engine: EngineConfig = EngineConfig()
    """It samples autoregressive negatives, of all kinds in one pass."""
    unhelpful: UnhelpfulConfig = UnhelpfulConfig()
    in_phases: Auto[bool] = Field(default=None, json_schema_extra=EXECUTION)
    """Sample for all prompts first, end the engines, then score and rank: both have the GPUs, or a small machine's memory, for
    themselves. The groups are the same. `auto`: where engines and scorers do not fit on the GPUs at once."""
    engines: PoolConfig = Field(default=PoolConfig(), json_schema_extra=EXECUTION)
    """Each actor has a vLLM engine."""
    scorers: PoolConfig = Field(default=PoolConfig(), json_schema_extra=EXECUTION)
    """The actors draw meanfield negatives and score candidates under the reference."""
    rankers: PoolConfig = Field(default=PoolConfig(), json_schema_extra=EXECUTION)
    """The actors embed and rank candidates."""

    @model_validator(mode="after")
    def _check(self) -> "SamplingConfig":
        if self.refresh_steps is not None and not self.stream:
            raise ValueError(
                "refresh_steps needs stream: true: groups that are made before training cannot use the policy"
            )
        if self.refresh_reference and self.refresh_steps is None:
            raise ValueError(
                "refresh_reference needs refresh_steps (and stream: true): after so many steps the policy becomes the reference"
            )
        share, cards = self.engines.gpus, self.engine.tensor_parallel
        if share is not None and share != cards and not (cards == 1 and 0 < share < 1):
            raise ValueError(
                f"engines.gpus {share:g}: an engine has engine.tensor_parallel = {cards} whole GPUs"
                + (", or a part of one" if cards == 1 else "")
            )
        if self.stream and self.in_phases:
            raise ValueError(
                "in_phases cannot be combined with stream, where engines and scorers work at the same time"
            )
        taken = [name for name in self.kinds if name in (*CANDIDATE_KINDS, ANSWER)]
        if taken:
            raise ValueError(f"kinds: {taken[0]!r} is already a kind; choose another name")
        known = [*NegativeCounts.model_fields, *self.kinds]
        for name in self.negatives.model_extra or {}:
            if name not in known:
                near = did_you_mean(name, known, "`negatives.{}`") or "."
                raise ValueError(
                    f"unknown kind of negative `negatives.{name}`{near} A custom kind "
                    f"is declared as `kinds: {{{name}: module:function}}` or `kinds: {{{name}: {{temperature: 1.4}}}}`"
                )
        alike = {name: self.negatives.by_kind[name] for name, decoding in self.sampled.items() if decoding.is_greedy}
        if sum(alike.values()) > 1:
            counts = " and ".join(f"negatives.{name} {count}" for name, count in alike.items())
            raise ValueError(
                f"{counts}: greedy decoding (temperature 0, or top_k 1) has one answer per prompt, so these would all be "
                "alike. Keep one of them; for more negatives use `autoregressive` or a kind with a temperature, for instance "
                "`kinds: {hot: {temperature: 1.4}}`"
            )
        missing = [name for name in ("url", "model") if getattr(self.unhelpful, name) is None]
        if self.negatives.unhelpful and missing:
            raise ValueError(
                f"negatives.unhelpful {self.negatives.unhelpful} needs {' and '.join(f'unhelpful.{n}' for n in missing)}: "
                "the OpenAI-compatible API and the model that write these negatives"
            )
        return self

    @property
    def sampled(self) -> dict[str, KindDecoding]:
        """The requested kinds that vLLM samples: greedy ones first, then `autoregressive`, then the others by name."""
        default, wanted = KindDecoding(self.temperature, self.top_k, self.top_p), self.negatives.by_kind
        decodings = {"autoregressive": default, "greedy": GREEDY}
        for name, kind in sorted(self.kinds.items()):
            if isinstance(kind, SampledKind):
                decodings[name] = kind.decoding(default)
        found = [(name, decoding) for name, decoding in decodings.items() if name in wanted]
        return dict(sorted(found, key=lambda item: not item[1].is_greedy))

    @property
    def samples(self) -> int:
        """Negatives per prompt that vLLM samples."""
        return sum(self.negatives.by_kind[kind] for kind in self.sampled)

    @property
    def functions(self) -> dict[str, str]:
        """The requested kinds that are functions of the user's: name to `module:function`."""
        wanted = self.negatives.by_kind
        return {name: kind for name, kind in self.kinds.items() if isinstance(kind, str) and name in wanted}
