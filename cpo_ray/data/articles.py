"""Articles, from a Wikipedia dump or plain text: streamed, cut into passages, and as many chosen as the splits need."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from cpo_ray.config import DataConfig, RunConfig
from cpo_ray.data.article_selection import Chooser, Chosen
from cpo_ray.data.passages import CutArticle, cut_article
from cpo_ray.data.prepared import Draft, Material, take_good
from cpo_ray.data.reading import read_chunks
from cpo_ray.data.rows import BadRow, content_hash
from cpo_ray.data.sources import list_parts
from cpo_ray.data.splits import SPLITS
from cpo_ray.data.tokenization import Tokenizer, encode, make_tokenizer
from cpo_ray.errors import DataError


def article_material(config: RunConfig, path: str) -> Material[Chosen]:
    """Read all articles once, cutting them where they are read; memory holds what may still be chosen.

    Raises DataError for a file that is missing, empty or damaged (unless quarantined), too few passages, or a tokenizer
    that cannot be loaded.
    """
    tokenizer = make_tokenizer(config.data.tokenizer, ())
    if not tokenizer.is_fast:
        raise DataError(
            f"data.tokenizer.path: {config.data.tokenizer.path} does not tell which characters a token stands for, so "
            "articles cannot be cut with it. Convert it to a tokenizer.json."
        )
    chooser = Chooser({name: getattr(config.data, f"{name}_rows") for name in SPLITS}, config.seed)
    quarantined: list[BadRow] = []
    reader = partial(read_cut_articles, data=_with_absolute_tokenizer(config.data))
    for chunk in read_chunks(list_parts(path, config.data.source), reader):
        for article in take_good(chunk.records, config.data, quarantined):
            chooser.add(article)
    filling = chooser.fill()
    counts = {
        "articles": chooser.articles,
        "short_articles": chooser.short_articles,
        "duplicate_articles": chooser.duplicate_articles,
        "unused_rows": chooser.passages - sum(chooser.sizes.values()),
        "repeated_prompts": filling.repeated,
    }
    draft = partial(_draft, tokenizer, config.data.source)
    return Material(tokenizer, filling.splits, draft, quarantined, counts)


def read_cut_articles(file: IO[bytes], name: str, data: DataConfig) -> Iterator[CutArticle | BadRow]:
    """One part's articles, each cut into passages, and what is wrong with the part."""
    tokenizer = make_tokenizer(data.tokenizer, ())
    if data.source == "wikidump":
        from cpo_ray.data.wikidump import read_wikidump as read
    else:
        from cpo_ray.data.plaintext import read_plaintext as read
    for article in read(file, name):
        yield article if isinstance(article, BadRow) else cut_article(article, tokenizer, data.passages)


def _draft(tokenizer: Tokenizer, source: str, rows: Sequence[Chosen]) -> list[Draft]:
    """The passage's own tokens, with what the tokenizer puts before a text (a Llama's BOS)."""
    (before,) = encode(tokenizer, [""], special=True)
    return [
        Draft(
            id=content_hash(source, row.passage.prompt, row.passage.response)[:16],
            source=source,
            category=row.title,
            prompt=row.passage.prompt,
            response=row.passage.response,
            prompt_ids=[*before, *row.passage.prompt_ids],
            response_ids=row.passage.response_ids,
        )
        for row in rows
    ]


def _with_absolute_tokenizer(data: DataConfig) -> DataConfig:
    """Ray's workers have a working directory of their own."""
    path = data.tokenizer.path
    if path is None or not Path(path).is_dir():
        return data
    return data.model_copy(update={"tokenizer": data.tokenizer.model_copy(update={"path": str(Path(path).resolve())})})
