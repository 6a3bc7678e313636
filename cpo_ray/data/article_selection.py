"""Which articles are used, and on which side of the split: decided while they stream by, whatever their number and order.

Articles are ordered by a hash of seed and title. The splits are filled in that order, whole articles at a time, so no
article is on two sides. Only the articles that can still be used are kept in memory.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from cpo_ray.data.passages import CutArticle, Passage
from cpo_ray.data.rows import content_hash
from cpo_ray.data.splits import FILL_ORDER, SPLITS
from cpo_ray.errors import DataError

SLACK = 2  # keep this many times the articles that were needed so far


@dataclass(frozen=True)
class Chosen:
    """A passage that was chosen, and its article's title."""

    title: str
    passage: Passage


@dataclass
class Filling:
    """The splits as far as they could be filled."""

    splits: dict[str, list[Chosen]]
    titles: int = 0  # how many titles, in order, that took
    repeated: int = 0  # passages left out because an earlier one has the same prompt
    unfilled: str | None = None  # the first split that is not full


@dataclass
class Chooser:
    """Give it every article with `add`, in any order; then `fill`."""

    sizes: Mapping[str, int]  # split name -> passages wanted
    seed: int
    articles: int = 0
    passages: int = 0
    short_articles: int = 0  # without a passage
    _kept: dict[str, dict[str, CutArticle]] = field(default_factory=dict)  # order of title -> content -> article
    _contents: "array[int]" = field(default_factory=lambda: array("Q"))  # 64 bits of each article's content hash
    _bound: str = "g"  # no title from here on can be used any more; "g" is after every hexadecimal digit
    _waiting: int = 0  # passages kept
    _next_prune: int = 0

    def add(self, article: CutArticle) -> None:
        """Take note of an article. One with the same title and text as another is known again and counted once."""
        self.articles += 1
        self.short_articles += not article.passages
        self._contents.append(int(article.content[:16], 16))
        self.passages += len(article.passages)
        order = content_hash(self.seed, "split", article.title)
        if article.passages and order < self._bound and article.content not in self._kept.setdefault(order, {}):
            self._kept[order][article.content] = article
            self._waiting += len(article.passages)
            if self._waiting > max(self._next_prune, 4 * sum(self.sizes.values())):
                self._prune()

    @property
    def duplicate_articles(self) -> int:
        """How many articles came again, word for word."""
        return len(self._contents) - len(np.unique(np.frombuffer(self._contents, dtype=np.uint64)))

    def fill(self) -> Filling:
        """Passages for each split of `sizes`, exactly as many as asked, in shuffled order.

        Raises DataError, with the arithmetic, where the articles have too few.
        """
        filling = self._fill()
        if filling.unfilled:
            wanted = " + ".join(f"{name} {size}" for name, size in self.sizes.items())
            had = {name: len(rows) for name, rows in filling.splits.items()}
            raise DataError(
                f"{self.articles} articles ({self.duplicate_articles} of them duplicates) give {self.passages} passages, "
                f"but {wanted} = {sum(self.sizes.values())} are wanted, each article whole on one side and no prompt "
                f"twice ({filling.repeated} left out): {had} could be filled. Lower data.{filling.unfilled}_rows, or lower "
                "data.passages.tokens for more passages."
            )
        for rows in filling.splits.values():
            rows.sort(key=lambda row: content_hash(self.seed, "order", row.passage.prompt))
        return filling

    def _fill(self) -> Filling:
        filling = Filling({name: [] for name in SPLITS})
        waiting = [name for name in FILL_ORDER if self.sizes[name]]
        seen: set[str] = set()
        for order in sorted(self._kept):
            if not waiting:
                break
            filling.titles += 1
            rows = filling.splits[waiting[0]]
            for title, passage in self._of_title(order):
                if passage.prompt in seen:
                    filling.repeated += 1
                elif len(rows) < self.sizes[waiting[0]]:
                    rows.append(Chosen(title, passage))
                seen.add(passage.prompt)
            if len(rows) == self.sizes[waiting[0]]:
                waiting.pop(0)
        filling.unfilled = waiting[0] if waiting else None
        return filling

    def _of_title(self, order: str) -> Iterator[tuple[str, Passage]]:
        for _, article in sorted(self._kept[order].items()):
            for passage in article.passages:
                yield article.title, passage

    def _prune(self) -> None:
        """Forget the titles that come after twice as many as the splits need."""
        filling = self._fill()
        if filling.unfilled is None:
            unneeded = sorted(self._kept)[SLACK * filling.titles :]
            self._bound = min([self._bound, *unneeded])
            for order in unneeded:
                self._waiting -= sum(len(article.passages) for article in self._kept.pop(order).values())
        self._next_prune = 2 * self._waiting
