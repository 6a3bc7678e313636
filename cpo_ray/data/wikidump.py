"""MediaWiki XML dumps: articles as plain text, streamed. The only file that imports mwxml and mwparserfromhell."""

import itertools
import re
from collections.abc import Iterator
from typing import IO, Any
from xml.etree.ElementTree import ParseError

import mwparserfromhell
from mwparserfromhell.nodes import Heading, HTMLEntity, Tag, Text, Wikilink
from mwparserfromhell.parser import ParserError
from mwxml import Dump, Page
from mwxml.element_iterator import ElementIterator
from mwxml.errors import MalformedXML

from cpo_ray.data.bzip2 import Bzip2Stream, DamagedFileError
from cpo_ray.data.rows import Article, BadRow
from cpo_ray.errors import DataError

ARTICLES = 0  # the namespace
REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)  # old dumps mark redirects in the text alone
NOT_PROSE = re.compile(r"\s*((?i:file|image|media|category)\s*:|[a-z]{2,3}(-[a-z-]+)?:\S|simple:\S)")
"""Links that put up a picture, file the article, or name it in another language."""
FIGURES = {"table", "gallery", "imagemap", "timeline", "graph", "mapframe", "maplink", "score"}
FORMULAS = {"math", "chem", "ce", "hiero", "source", "syntaxhighlight"}
DROPPED_TAGS = {"ref", "references", "categorytree", "inputbox", "section", "templatedata"} | FIGURES | FORMULAS
EMPTY_BRACKETS = re.compile(r"[ \t]*\([\s,;:\u2013\u2014-]*\)")  # what a template or a pronunciation leaves behind
LONE_COMMA = re.compile(r" +([,;])")
BLANKS = re.compile(r"[ \t\u00a0]+")
PARAGRAPHS = re.compile(r"\s*\n\s*\n\s*")


class _PlainStream:
    """An uncompressed dump, read with the same face as a compressed one."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.byte = 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.byte += len(data)
        return data


def read_wikidump(file: IO[bytes], name: str) -> Iterator[Article | BadRow]:
    """Stream a dump's articles in plain text: namespace 0, no redirects, of each page the last revision.

    name: ends in .bz2 where the file is compressed; messages call it so. Memory holds one page. A file that is
    truncated, damaged or no dump ends with a BadRow that names the byte; an article that cannot be parsed is one alone.
    Raises DataError where the file holds no byte at all.
    """
    stream = Bzip2Stream(file) if name.endswith(".bz2") else _PlainStream(file)
    try:
        for page in _pages(stream):
            text = _wikitext(page)
            if text is not None:
                yield _article(page, text, name, stream.byte)
    except DamagedFileError as error:
        yield BadRow(name, None, f"{error}. What follows is lost.", error.byte)
    except ParseError as error:
        if not stream.byte:
            raise DataError(
                f"{name} is empty. Fetch it again, or name another file with --set data.path=FILE."
            ) from None
        line, column = getattr(error, "position", (1, 0))  # mwxml leaves it out for the first element
        reason = f"not well-formed XML at line {line}, column {column} of the text ({error.msg.split(':')[0]})"
        yield BadRow(name, None, f"{reason}. What follows is lost.", stream.byte)
    except (MalformedXML, AssertionError, ValueError, TypeError, AttributeError) as error:
        # What mwxml raises for XML that is no dump: another root, a page without a title, an id that is no number.
        reason = f"not a MediaWiki dump ({type(error).__name__}: {error})".replace(": )", ")")
        yield BadRow(name, None, f"{reason}. What follows is lost.", stream.byte)


def plain_text(wikitext: str) -> str:
    """What a reader would read: no templates, tables, footnotes, pictures, formulas or categories; links by their words.

    Paragraphs and headings are separated by a blank line. An entity that stands for no character (half a UTF-16 pair)
    becomes U+FFFD. Raises mwparserfromhell's ParserError where it gives up.
    """
    text = "".join(_strip(mwparserfromhell.parse(wikitext)))
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins pairs that were written in halves
    text = LONE_COMMA.sub(r"\1", EMPTY_BRACKETS.sub("", BLANKS.sub(" ", text)))
    paragraphs = (
        "\n".join(stripped for line in paragraph.split("\n") if (stripped := line.strip()))
        for paragraph in PARAGRAPHS.split(text)
    )
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _pages(stream: Any) -> Iterator[Page]:
    root = ElementIterator.from_file(stream)
    if root.tag != "mediawiki":
        raise MalformedXML(f"the root is <{root.tag}>, not <mediawiki>")
    for page in Dump.from_element(root).pages:
        yield page
        root.element.clear()  # else the tree keeps an empty element of every page
    for _ in root.pointer.etree_events:  # mwxml stops at </mediawiki>: what follows must be nothing
        pass


def _wikitext(page: Page) -> str | None:
    """The text of the page's last revision; None for what is no article."""
    if page.namespace != ARTICLES or page.redirect is not None:
        return None
    text = None
    for revision in page:
        if revision.model in (None, "wikitext"):
            text = revision.text
    return None if not text or REDIRECT.match(text) else text


def _article(page: Page, text: str, name: str, byte: int) -> Article | BadRow:
    try:
        return Article(page.title.strip(), plain_text(text))
    except ParserError as error:
        return BadRow(name, None, f"article {page.title!r} cannot be parsed ({error})", byte)


def _strip(code: Any) -> Iterator[str]:
    for node in code.nodes:
        if isinstance(node, Text):
            yield node.value
        elif isinstance(node, Wikilink):
            if not NOT_PROSE.match(str(node.title)):
                yield from _strip(node.title if node.text is None else node.text)
        elif isinstance(node, Heading):
            yield from itertools.chain(["\n\n"], _strip(node.title), ["\n\n"])
        elif isinstance(node, Tag):
            yield from _strip_tag(node)
        elif isinstance(node, HTMLEntity):
            yield node.normalize()
        else:  # templates, comments, arguments, external links
            yield node.__strip__(normalize=True, collapse=False, keep_template_params=False) or ""


def _strip_tag(tag: Tag) -> Iterator[str]:
    name = str(tag.tag).strip().lower()
    if name == "br":
        yield "\n"
    elif name not in DROPPED_TAGS and tag.contents is not None:
        yield from _strip(tag.contents)
