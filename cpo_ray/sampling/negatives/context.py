"""What a negative is drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass

from cpo_ray.records import Tokens, without_eos


@dataclass(frozen=True)
class NegativeContext:
    """One row of the training split and the rest of its batch: the first argument of every kind's `draw(context, rng)`."""

    id: str
    prompt: str
    response: str  # the whole ground truth, as text
    prompt_ids: Tokens
    gold: Tokens  # the ground truth as tokens; the last one is EOS, unless it was cut to data.max_response_tokens
    eos: int  # the token that ends a continuation
    others: Sequence[Tokens]  # the distinct responses of the other rows of the batch, without the gold
    taken: Sequence[Tokens] = ()  # the negatives of this kind that the row already has

    @property
    def body(self) -> Tokens:
        """The gold without its EOS: all of its tokens if it was cut."""
        return without_eos(self.gold, self.eos)
