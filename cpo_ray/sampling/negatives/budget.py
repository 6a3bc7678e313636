"""Caps on the cost of an API: checked before the first request, while requests are in flight, and across restarts."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from cpo_ray.config import UnhelpfulConfig
from cpo_ray.errors import ConfigError, ServiceError

SECTION = "sampling.unhelpful"


@dataclass(frozen=True)
class Usage:
    """Answered requests and their tokens."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Budget:
    """Keeps the cost below the caps. A request in flight counts with its maximum cost."""

    def __init__(self, config: UnhelpfulConfig, spent: Iterable[Usage]) -> None:
        """spent: the cost of each answer on disk."""
        self.config = config
        self.spent = sum(spent, Usage())
        self.reserved = Usage()

    def check(self, most: Usage) -> None:
        """Raise ConfigError if `most`, added to what was spent, exceeds a cap."""
        excess = self._excess(self.spent + most)
        if excess:
            raise ConfigError(
                f"unhelpful negatives: {self.describe(most)} to send, {self.describe(self.spent)} spent already: this may "
                f"exceed {excess}. Raise it, or lower sampling.rows, sampling.negatives.unhelpful or {SECTION}.max_tokens."
            )

    def reserve(self, most: Usage) -> None:
        """Reserve the maximum cost of a request. Raises ServiceError if a cap does not allow it."""
        excess = self._excess(self.spent + self.reserved + most)
        if excess:
            raise ServiceError(
                f"unhelpful negatives: the next request could exceed {excess}; {self.describe(self.spent)} are spent. "
                "The answers so far are kept: raise the cap and run the same command again."
            )
        self.reserved += most

    def settle(self, reserved: Usage, used: Usage) -> None:
        """Replace the reserved cost of an answered request by its actual cost."""
        self.reserved -= reserved
        self.spent += used

    def price(self, usage: Usage) -> float | None:
        """Cost in the currency of the configured prices; None without prices."""
        if self.config.input_price is None or self.config.output_price is None:
            return None
        return (usage.input_tokens * self.config.input_price + usage.output_tokens * self.config.output_price) / 1e6

    def describe(self, usage: Usage) -> str:
        """`7,505 requests, 2,011,000 tokens, 1.20 in price`."""
        tokens = usage.input_tokens + usage.output_tokens
        price = self.price(usage)
        return f"{usage.requests:,} requests, {tokens:,} tokens" + ("" if price is None else f", {price:.2f} in price")

    def _excess(self, usage: Usage) -> str:
        """Key and value of the first cap that `usage` exceeds; empty if it exceeds none."""
        tokens, price = usage.input_tokens + usage.output_tokens, self.price(usage)
        if usage.requests > self.config.max_requests:
            return f"{SECTION}.max_requests {self.config.max_requests:,}"
        if tokens > self.config.max_total_tokens:
            return f"{SECTION}.max_total_tokens {self.config.max_total_tokens:,}"
        if price is not None and self.config.max_price is not None and price > self.config.max_price:
            return f"{SECTION}.max_price {self.config.max_price:g}"
        return ""
