"""How vLLM decodes the autoregressive kinds of negatives: the shipped ones, and those declared with parameters."""

from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from cpo_ray.config.section import Section

LOWEST, HIGHEST = 0.01, 2.0  # temperatures that vLLM samples with; it raises lower ones, and refuses higher ones


def _check_temperature(temperature: float) -> float:
    if not LOWEST <= temperature <= HIGHEST:
        raise ValueError(
            f"{temperature:g} is not between {LOWEST} and {HIGHEST:g}, the temperatures that vLLM samples with; for greedy "
            "decoding use the kind `greedy`"
        )
    return temperature


def _check_temperature_or_greedy(temperature: float) -> float:
    return temperature if temperature == 0 else _check_temperature(temperature)


Temperature = Annotated[float, AfterValidator(_check_temperature)]
TemperatureOrGreedy = Annotated[float, AfterValidator(_check_temperature_or_greedy)]
TopK = Annotated[int, Field(ge=-1)]
TopP = Annotated[float, Field(gt=0, le=1)]


class KindDecoding(NamedTuple):
    """How one kind is decoded. top_k: 0 and -1 are the whole vocabulary."""

    temperature: float
    top_k: int
    top_p: float

    @property
    def is_greedy(self) -> bool:
        """Whether a prompt has one answer only."""
        return self.temperature == 0 or self.top_k == 1

    def __str__(self) -> str:
        """For people, e.g. `temperature 1.4, top-k 50`."""
        if self.temperature == 0:
            return "temperature 0"
        cuts = [f"top-k {self.top_k}"] * (self.top_k > 0) + [f"top-p {self.top_p:g}"] * (self.top_p < 1)
        return ", ".join([f"temperature {self.temperature:g}", *cuts])


PAPER_DECODING = KindDecoding(temperature=1.0, top_k=50, top_p=1.0)
GREEDY = KindDecoding(temperature=0.0, top_k=0, top_p=1.0)


class SampledKind(Section):
    """A kind that vLLM samples with parameters of its own. Unset ones are those of `sampling`."""

    temperature: TemperatureOrGreedy | None = None
    """Temperature, from 0.01 to 2; 0 is greedy. Default: `sampling.temperature`."""
    top_k: TopK | None = None
    """Sample from this many most likely tokens; 0 or -1 is the whole vocabulary. Default: `sampling.top_k`."""
    top_p: TopP | None = None
    """Sample from the smallest set of tokens with this probability. Default: `sampling.top_p`."""

    def decoding(self, default: KindDecoding) -> KindDecoding:
        """The parameters, with those of `default` for unset ones."""
        return KindDecoding(
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_k=default.top_k if self.top_k is None else self.top_k,
            top_p=default.top_p if self.top_p is None else self.top_p,
        )
