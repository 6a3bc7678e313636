"""What a negative is drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass

Tokens = list[int]


@dataclass(frozen=True)
class Source:
    """One row of the training split and its batch, as a kind of negative sees them."""

    id: str
    prompt: str
    response: str  # the ground truth as text, whole
    prompt_ids: Tokens
    gold: Tokens  # the ground truth as tokens, cut to data.max_response_tokens, the last one EOS
    others: Sequence[Tokens]  # the different responses of the other rows of its batch, none of them the gold
    taken: Sequence[Tokens] = ()  # the negatives of this kind that the row has already

    @property
    def eos(self) -> int:
        """The token that ends every continuation."""
        return self.gold[-1]
