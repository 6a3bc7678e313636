"""Cuts articles into passages of a fixed number of tokens, whose first share is the prompt (15% in the paper)."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cpo_ray.config import PassagesConfig
from cpo_ray.data.rows import Article, content_hash
from cpo_ray.data.tokenization import Tokenizer

Span = tuple[int, int]  # a token's characters: first, one past the last


@dataclass(frozen=True)
class Passage:
    """A sample: adjacent texts of an article, with their tokens from tokenizing the whole article."""

    prompt: str
    response: str
    prompt_ids: "array[int]"  # an array saves memory: many passages are held at once
    response_ids: "array[int]"  # without EOS
    ends: bool  # whether the article ends here


@dataclass(frozen=True)
class CutArticle:
    """An article's passages, in order; none if it is too short."""

    title: str
    content: str  # hash of title and text, which identifies duplicates
    passages: list[Passage]


def cut_article(article: Article, tokenizer: Tokenizer, config: PassagesConfig) -> CutArticle:
    """Cut into consecutive passages of `config.tokens` tokens; the last may have as few as `config.min_tokens`.

    A cut never splits a character that is spelled by several tokens: it moves back to that character's first token.
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
            first, cut, last = (_character(text, spans, token) for token in (begin, middle, end))
            tokens = array("i", ids[begin:middle]), array("i", ids[middle:end])
            yield Passage(text[first:cut], text[cut:last], *tokens, ends=end == len(ids))
        begin = end


def _between_characters(spans: Sequence[Span], begin: int, token: int) -> int:
    """The last cut in (begin, token] that falls between two characters, otherwise the first one after `token`."""
    if token >= len(spans):
        return len(spans)
    cuts = range(token, begin, -1), range(max(token, begin) + 1, len(spans))
    for candidates in cuts:
        for cut in candidates:
            if spans[cut][0] >= spans[cut - 1][1]:
                return cut
    return len(spans)


def _character(text: str, spans: Sequence[Span], token: int) -> int:
    """The character at which a cut before `token` splits the text. Whitespace outside all spans goes to the later part."""
    if token == 0:
        return 0
    return len(text) if token == len(spans) else spans[token - 1][1]
