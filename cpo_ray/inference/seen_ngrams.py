"""The n-grams of a growing sequence of tokens, and which next tokens would repeat one."""

from collections import defaultdict
from collections.abc import Sequence


class SeenNgrams:
    """The rule of `no_repeat_ngram_size` in transformers, for one sequence, whose n-grams are counted once as it grows."""

    def __init__(self, n: int) -> None:
        """n >= 1; with 1, no token may occur twice."""
        self.n, self.indexed = n, 0
        self.following: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)  # first n - 1 tokens -> last ones

    def banned(self, tokens: Sequence[int]) -> set[int]:
        """Next tokens that would complete an n-gram that `tokens` has. Every call takes the same sequence, perhaps longer."""
        for end in range(max(self.n, self.indexed + 1), len(tokens) + 1):
            *first, last = tokens[end - self.n : end]
            self.following[tuple(first)].add(last)
        self.indexed = len(tokens)
        if len(tokens) < self.n:
            return set()
        return self.following.get(tuple(tokens[len(tokens) - self.n + 1 :]), set())
