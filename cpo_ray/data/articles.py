"""Prepares articles from a Wikipedia dump or plain text: reads them as a stream, cuts them into passages, fills the splits."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from cpo_ray.config import DataConfig
from cpo_ray.data.article_selection import ArticleSelector, SelectedPassage
from cpo_ray.data.passages import CutArticle, cut_article
from cpo_ray.data.prepared import PreparedSource, SourceLog, UncutExample
from cpo_ray.data.reading import list_and_report, read_chunks
from cpo_ray.data.rows import Article, BadRow, FileFormat, ReadingCounts, content_hash
from cpo_ray.data.splits import SPLITS
from cpo_ray.data.tokenization import Tokenizer, encode, make_tokenizer
from cpo_ray.errors import DataError


def prepare_articles(data: DataConfig, seed: int, path: str) -> PreparedSource[SelectedPassage]:
    """Read all articles once and cut them as they are read. Memory holds only those that may still be selected.

    Raises DataError for a file that is missing, empty or damaged (unless quarantined), too few passages, or a tokenizer
    that cannot be loaded.
    """
    tokenizer = make_tokenizer(data.tokenizer, ())
    if not tokenizer.is_fast:
        raise DataError(
            f"data.tokenizer.path: {data.tokenizer.path} gives no character offsets for its tokens, so it cannot be used "
            "to cut articles. Convert it to a tokenizer.json."
        )
    selector = ArticleSelector({name: data.rows(name) for name in SPLITS}, seed)
    log = SourceLog(data)
    reader = partial(read_cut_articles, data=_with_absolute_tokenizer(data))
    for chunk in read_chunks(list_and_report(path, data.source), reader):
        for article in log.rows(chunk.records):
            selector.add(article)
    selector.left_out = log.counts
    filled = selector.fill()
    counts = {
        "articles": selector.articles,
        "short_articles": selector.short_articles,
        "duplicate_articles": selector.duplicate_articles,
        "unused_rows": selector.passages - sum(selector.sizes.values()),
        "repeated_prompts": filled.repeated,
        **log.summary,
    }
    tokenize = partial(_tokenize, tokenizer, data.source)
    return PreparedSource(tokenizer, filled.splits, tokenize, log.quarantined, counts)


def read_cut_articles(
    file: IO[bytes], name: str, data: DataConfig
) -> Iterator[FileFormat | CutArticle | BadRow | ReadingCounts]:
    """The articles of one file, each cut into passages; a BadRow for whatever cannot be read, and facts about the file."""
    tokenizer = make_tokenizer(data.tokenizer, ())
    if data.source == "wikidump":
        from cpo_ray.data.wikidump import read_wikidump as read
    else:
        from cpo_ray.data.plaintext import read_plaintext as read
    for found in read(file, name):
        yield cut_article(found, tokenizer, data.passages) if isinstance(found, Article) else found


def _tokenize(tokenizer: Tokenizer, source: str, rows: Sequence[SelectedPassage]) -> list[UncutExample]:
    """The passage's own tokens, after the special tokens that the tokenizer puts before a text (Llama's BOS)."""
    (before,) = encode(tokenizer, [""], special=True)
    return [
        UncutExample(
            id=content_hash(source, row.passage.prompt, row.passage.response)[:16],
            source=source,
            category=row.title,
            prompt=row.passage.prompt,
            response=row.passage.response,
            prompt_ids=[*before, *row.passage.prompt_ids],
            response_ids=row.passage.response_ids,
            ends=row.passage.ends,
        )
        for row in rows
    ]


def _with_absolute_tokenizer(data: DataConfig) -> DataConfig:
    """Ray workers run in another working directory, so a relative path would not be found there."""
    path = data.tokenizer.path
    if path is None or not Path(path).is_dir():
        return data
    return data.model_copy(update={"tokenizer": data.tokenizer.model_copy(update={"path": str(Path(path).resolve())})})
