"""Which articles are used, and in which split. The selection does not depend on the number or the order of the articles.

Articles are ordered by a hash of seed and title. The splits are filled in that order with whole articles, so no article
is in two splits. Only the articles that can still be used are kept in memory.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from cpo_ray.data.passages import CutArticle, Passage
from cpo_ray.data.rows import content_hash
from cpo_ray.data.splits import FILL_ORDER, SPLITS
from cpo_ray.errors import DataError

SLACK = 2  # keep this many times the titles that were needed so far


@dataclass(frozen=True)
class SelectedPassage:
    """A passage of a split, and the title of its article."""

    title: str
    passage: Passage


@dataclass
class FilledSplits:
    """The splits, filled as far as the articles allow."""

    splits: dict[str, list[SelectedPassage]]
    titles: int = 0  # titles used, in order
    repeated: int = 0  # passages left out because an earlier one has the same prompt
    unfilled: str | None = None  # the first split that is not full


@dataclass
class ArticleSelector:
    """Call `add` for every article, in any order, then `fill`."""

    sizes: Mapping[str, int]  # split name -> passages wanted
    seed: int
    articles: int = 0
    passages: int = 0
    short_articles: int = 0  # without a passage
    left_out: Mapping[str, int] = field(default_factory=dict)  # pages that are not articles, by reason; for the message
    _kept: dict[str, dict[str, CutArticle]] = field(default_factory=dict)  # hash of title -> hash of content -> article
    _contents: "array[int]" = field(default_factory=lambda: array("Q"))  # 64 bits of each article's content hash
    _bound: str = (
        "g"  # titles whose hash is this or higher cannot be used any more; "g" is above every hexadecimal digit
    )
    _kept_passages: int = 0
    _next_prune: int = 0

    def add(self, article: CutArticle) -> None:
        """Add an article. A second one with the same title and text counts as a duplicate and is not used."""
        self.articles += 1
        self.short_articles += not article.passages
        self._contents.append(int(article.content[:16], 16))
        self.passages += len(article.passages)
        order = content_hash(self.seed, "split", article.title)
        if article.passages and order < self._bound and article.content not in self._kept.setdefault(order, {}):
            self._kept[order][article.content] = article
            self._kept_passages += len(article.passages)
            if self._kept_passages > max(self._next_prune, 4 * sum(self.sizes.values())):
                self._prune()

    @property
    def duplicate_articles(self) -> int:
        """How many articles have the same title and text as an earlier one."""
        return len(self._contents) - len(np.unique(np.frombuffer(self._contents, dtype=np.uint64)))

    def fill(self) -> FilledSplits:
        """Select exactly as many passages for each split as `sizes` asks for, in shuffled order.

        Raises DataError, with the arithmetic, if the articles have too few passages.
        """
        filled = self._fill()
        if filled.unfilled:
            wanted = " + ".join(f"{name} {size}" for name, size in self.sizes.items())
            available = {name: len(rows) for name, rows in filled.splits.items()}
            left_out = ", ".join(f"{name} {count}" for name, count in sorted(self.left_out.items()) if count)
            raise DataError(
                f"{self.articles} articles ({self.duplicate_articles} of them duplicates"
                f"{f'; not articles: {left_out}' if left_out else ''}) give {self.passages} passages, "
                f"but {wanted} = {sum(self.sizes.values())} are wanted. An article is never in two splits and no prompt is "
                f"used twice ({filled.repeated} left out), so only {available} could be filled. Lower "
                f"data.{filled.unfilled}_rows, or lower data.passages.tokens for more passages."
            )
        for rows in filled.splits.values():
            rows.sort(key=lambda row: content_hash(self.seed, "order", row.passage.prompt))
        return filled

    def _fill(self) -> FilledSplits:
        filled = FilledSplits({name: [] for name in SPLITS})
        unfilled = [name for name in FILL_ORDER if self.sizes[name]]
        seen: set[str] = set()
        for order in sorted(self._kept):
            if not unfilled:
                break
            filled.titles += 1
            rows = filled.splits[unfilled[0]]
            for title, passage in self._passages_of_title(order):
                if passage.prompt in seen:
                    filled.repeated += 1
                elif len(rows) < self.sizes[unfilled[0]]:
                    rows.append(SelectedPassage(title, passage))
                seen.add(passage.prompt)
            if len(rows) == self.sizes[unfilled[0]]:
                unfilled.pop(0)
        filled.unfilled = unfilled[0] if unfilled else None
        return filled

    def _passages_of_title(self, order: str) -> Iterator[tuple[str, Passage]]:
        for _, article in sorted(self._kept[order].items()):
            for passage in article.passages:
                yield article.title, passage

    def _prune(self) -> None:
        """Drop the titles beyond SLACK times as many as the splits need."""
        filled = self._fill()
        if filled.unfilled is None:
            unneeded = sorted(self._kept)[SLACK * filled.titles :]
            self._bound = min([self._bound, *unneeded])
            for order in unneeded:
                self._kept_passages -= sum(len(article.passages) for article in self._kept.pop(order).values())
        self._next_prune = 2 * self._kept_passages
