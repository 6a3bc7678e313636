"""Plain text as articles: wikitext (WikiText-2, WikiText-103), where a line ` = Title = ` begins one, or any text."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from cpo_ray.data.lines import decode_line, read_lines
from cpo_ray.data.rows import Article, BadRow

TITLE = re.compile(r" ?= ([^=\s](?:[^=]*[^=\s])?) = ?")
PIECE = 64_000  # characters after which a text goes on as a new article, at the next blank line


def read_plaintext(file: IO[bytes], name: str) -> Iterator[Article | BadRow]:
    """Stream a file's articles. A line that is not UTF-8 is a BadRow alone.

    A line ` = Title = ` begins an article and is part of its text. After PIECE characters an article ends at a blank line:
    under a title the rest keeps the title, elsewhere it is an article of its own, called by the file's name and a number.
    Memory holds one piece. Raises DataError where the file holds nothing but white space.
    """
    plain_name = PurePosixPath(name).name
    title, number, size = f"{plain_name} 1", 1, 0
    titled = False
    lines: list[str] = []
    for position, line in read_lines(file, name):
        text = decode_line(name, position, line)
        if isinstance(text, BadRow):
            yield text
            continue
        heading = TITLE.fullmatch(text)
        if heading or (size >= PIECE and not text.strip()):
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
