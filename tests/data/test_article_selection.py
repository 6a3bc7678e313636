import random
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.data.article_selection import ArticleSelector, SelectedPassage
from cpo_ray.data.passages import CutArticle, Passage
from cpo_ray.data.rows import content_hash
from cpo_ray.errors import DataError

SIZES = {"train": 12, "validation": 3, "test": 5}


def article(title: str, *prompts: str) -> CutArticle:
    tokens = array("i", [1]), array("i", [2, 3])
    passages = [Passage(prompt, f"{title} goes on", *tokens, ends=False) for prompt in prompts]
    return CutArticle(title, content_hash(title, prompts), passages)


def some_articles(count: int, most: int = 4, seed: int = 0) -> list[CutArticle]:
    draw = random.Random(seed)
    return [article(f"title {n}", *(f"prompt {n}.{k}" for k in range(draw.randint(0, most)))) for n in range(count)]


def select(articles: list[CutArticle], sizes: dict[str, int] = SIZES, seed: int = 17) -> ArticleSelector:
    selector = ArticleSelector(sizes, seed)
    for each in articles:
        selector.add(each)
    return selector


def titles(rows: list[SelectedPassage]) -> set[str]:
    return {row.title for row in rows}


def prompts(rows: list[SelectedPassage]) -> set[str]:
    return {row.passage.prompt for row in rows}


@given(st.integers(0, 1000), st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_selection_depends_neither_on_order_nor_on_number(seed: int, most: int, rng: random.Random) -> None:
    """Articles that cannot be used any more are dropped, which does not change the result."""
    articles = some_articles(150, most, seed)
    in_order = select(articles).fill().splits
    shuffled = rng.sample(articles, len(articles))
    selector = select(shuffled)
    assert selector.fill().splits == in_order
    assert {name: len(rows) for name, rows in in_order.items()} == SIZES


def test_memory_does_not_grow_with_the_articles() -> None:
    selector = select(some_articles(20_000))
    assert selector.passages > 30_000
    assert sum(len(kept.passages) for group in selector._kept.values() for kept in group.values()) <= 4 * 20 + 4


@given(st.integers(0, 1000))
def test_no_article_and_no_prompt_is_in_two_splits(seed: int) -> None:
    draw = random.Random(seed)
    articles = [
        article(f"title {n % 30}", *(f"prompt {draw.randrange(60)}" for _ in range(draw.randint(1, 4))))
        for n in range(60)
    ]
    splits = select(articles).fill().splits
    sides = list(splits.values())
    assert len(set.union(*map(titles, sides))) == sum(len(titles(rows)) for rows in sides)
    assert len(set.union(*map(prompts, sides))) == sum(map(len, sides)) == 20


def test_a_duplicate_article_is_counted_and_used_once() -> None:
    articles = some_articles(40)
    selector = select(articles * 3)
    assert (selector.articles, selector.duplicate_articles) == (120, 80)
    assert selector.fill().splits == select(articles).fill().splits


def test_repeated_prompts_are_counted() -> None:
    articles = [article(f"title {n}", "the same", f"prompt {n}") for n in range(40)]
    filled = select(articles, {"train": 10, "validation": 0, "test": 0}).fill()
    assert filled.repeated == filled.titles - 1
    assert sum(row.passage.prompt == "the same" for row in filled.splits["train"]) == 1


def test_short_articles_are_counted() -> None:
    selector = select([*some_articles(60, 3), article("stub"), article("another")])
    assert selector.short_articles == 2 + sum(not each.passages for each in some_articles(60, 3))


def test_the_test_rows_do_not_depend_on_the_other_sizes() -> None:
    articles = some_articles(100)
    small = select(articles, {"train": 1, "validation": 0, "test": 20}).fill().splits["test"]
    large = select(articles, {"train": 90, "validation": 20, "test": 20}).fill().splits["test"]
    assert small == large


def test_the_selection_depends_on_the_seed() -> None:
    articles = some_articles(100)
    assert select(articles, seed=1).fill().splits != select(articles, seed=2).fill().splits


def test_too_few_passages_show_the_arithmetic() -> None:
    articles = [article(f"title {n}", f"prompt {n}") for n in range(10)]
    with pytest.raises(DataError) as caught:
        select([*articles, articles[0]]).fill()
    for words in (
        "11 articles (1 of them duplicates) give 11 passages",
        "train 12 + validation 3 + test 5 = 20 are wanted",
        "'train': 2, 'validation': 3, 'test': 5",
        "Lower data.train_rows",
    ):
        assert words in str(caught.value)


def test_neighbours_come_from_different_articles() -> None:
    """Neighbours exchange responses as batch negatives."""
    articles = [article(f"title {n}", *(f"prompt {n}.{k}" for k in range(20))) for n in range(10)]
    rows = select(articles, {"train": 150, "validation": 0, "test": 0}).fill().splits["train"]
    same = sum(one.title == other.title for one, other in pairwise(rows))
    assert same < 40
