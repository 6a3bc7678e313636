"""From articles to passages: samples of so many tokens, of which the first share is the prompt (the paper: 15%)."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cpo_ray.config import PassagesConfig
from cpo_ray.data.rows import Article, content_hash
from cpo_ray.data.tokenization import Tokenizer

Span = tuple[int, int]  # of characters: first, one past the last


@dataclass(frozen=True)
class Passage:
    """A sample. The texts are the article's own, side by side; the tokens are those of the article as a whole."""

    prompt: str
    response: str
    prompt_ids: "array[int]"  # packed: many passages wait in memory
    response_ids: "array[int]"  # without EOS


@dataclass(frozen=True)
class CutArticle:
    """An article's passages, in order; none where it is too short for one."""

    title: str
    content: str  # hash of title and text: an article that comes again is known by it
    passages: list[Passage]


def cut_article(article: Article, tokenizer: Tokenizer, config: PassagesConfig) -> CutArticle:
    """Cut into consecutive passages of `config.tokens` tokens; the last may have as few as `config.min_tokens`.

    No cut goes through a character that several tokens spell: it moves back to that character's first token.
    """
    encoding = tokenizer(
        article.text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    passages = list(_cut(article.text, encoding["input_ids"], encoding["offset_mapping"], config))
    return CutArticle(article.title, content_hash(article.title, article.text), passages)


def _cut(text: str, ids: Sequence[int], spans: Sequence[Span], config: PassagesConfig) -> Iterator[Passage]:
    begin = 0
    while begin < len(ids):
        end = _between_characters(spans, begin, begin + config.tokens)
        middle = _between_characters(spans, begin, begin + config.prompt_tokens(end - begin))
        is_whole = end < len(ids) or end - begin >= config.min_tokens
        if is_whole and begin < middle < end:
            first, cut, last = (_character(text, spans, place) for place in (begin, middle, end))
            yield Passage(text[first:cut], text[cut:last], array("i", ids[begin:middle]), array("i", ids[middle:end]))
        begin = end


def _between_characters(spans: Sequence[Span], begin: int, place: int) -> int:
    """The last cut after `begin`, at or before token `place`, that falls between two characters; else the first after it."""
    if place >= len(spans):
        return len(spans)
    cuts = range(place, begin, -1), range(max(place, begin) + 1, len(spans))
    for candidates in cuts:
        for cut in candidates:
            if spans[cut][0] >= spans[cut - 1][1]:
                return cut
    return len(spans)


def _character(text: str, spans: Sequence[Span], place: int) -> int:
    """Where the text is cut before token `place`. White space that no token's span covers goes to what follows."""
    if place == 0:
        return 0
    return len(text) if place == len(spans) else spans[place - 1][1]
