"""Reads plain text as articles: WikiText-2 and WikiText-103, where a line ` = Title = ` begins an article, or any text."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from cpo_ray.data.lines import decode_line, read_lines
from cpo_ray.data.objects import LOST
from cpo_ray.data.rows import Article, BadRow, FileFormat
from cpo_ray.files.compression import DamagedFileError, open_stream
from cpo_ray.files.text import TextContent, open_text

TITLE = re.compile(r" ?= ([^=\s](?:[^=]*[^=\s])?) = ?")
ARTICLE_CHARACTERS = 64_000  # a longer text continues as a new article after the next blank line


def read_plaintext(file: IO[bytes], name: str) -> Iterator[FileFormat | Article | BadRow]:
    """Stream the file's format, then its articles. A line that is not UTF-8 becomes a BadRow and does not affect the others.

    A line ` = Title = ` begins an article and is part of its text. After ARTICLE_CHARACTERS an article ends at a blank
    line. The rest becomes another article, with the same title or, in a text without titles, the file's name and a number.
    Memory holds one article. A compressed file that is damaged ends with a BadRow, and its last article is lost. Raises
    DataError if the file has only whitespace, or is not UTF-8 but UTF-16 or Parquet.
    """
    stream = open_stream(file, name)
    try:
        content = open_text(stream, name)
        yield FileFormat.of(name, "text", stream.compression)
        yield from _read_articles(content, name)
    except DamagedFileError as error:
        yield BadRow(name, None, f"{error}. {LOST}", error.byte)


def _read_articles(content: TextContent, name: str) -> Iterator[Article | BadRow]:
    plain_name = PurePosixPath(name).name
    title, number, size = f"{plain_name} 1", 1, 0
    titled = False
    lines: list[str] = []
    for position, line in read_lines(content.lines, name):
        text = decode_line(name, position, line)
        if isinstance(text, BadRow):
            yield text
            continue
        heading = TITLE.fullmatch(text)
        if heading or (size >= ARTICLE_CHARACTERS and not text.strip()):
            yield from _article(title, lines)
            lines, size = [], 0
            if heading:
                title, titled = heading[1], True
            elif not titled:
                number += 1
                title = f"{plain_name} {number}"
        lines.append(text)
        size += len(text)
    yield from _article(title, lines)


def _article(title: str, lines: list[str]) -> Iterator[Article]:
    text = "\n".join(lines).strip()
    if text:
        yield Article(title, text)
