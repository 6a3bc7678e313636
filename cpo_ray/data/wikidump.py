"""Reads MediaWiki XML dumps as a stream of plain-text articles. The only file that imports mwxml and mwparserfromhell."""

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
REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)  # old dumps mark redirects only in the text
NOT_PROSE = re.compile(r"\s*((?i:file|image|media|category)\s*:|[a-z]{2,3}(-[a-z-]+)?:\S|simple:\S)")
"""Links to pictures, categories and other languages, which are not part of the text."""
FIGURES = {"table", "gallery", "imagemap", "timeline", "graph", "mapframe", "maplink", "score"}
FORMULAS = {"math", "chem", "ce", "hiero", "source", "syntaxhighlight"}
DROPPED_TAGS = {"ref", "references", "categorytree", "inputbox", "section", "templatedata"} | FIGURES | FORMULAS
EMPTY_BRACKETS = re.compile(r"[ \t]*\([\s,;:\u2013\u2014-]*\)")  # left behind by a template or a pronunciation
LONE_COMMA = re.compile(r" +([,;])")
BLANKS = re.compile(r"[ \t\u00a0]+")
PARAGRAPHS = re.compile(r"\s*\n\s*\n\s*")


class _PlainStream:
    """An uncompressed dump, with the interface of Bzip2Stream."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.byte = 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.byte += len(data)
        return data


def read_wikidump(file: IO[bytes], name: str) -> Iterator[Article | BadRow]:
    """Stream a dump's articles as plain text: namespace 0, no redirects, the last revision of each page.

    name: the file's name in messages; it ends in .bz2 if the file is compressed. Memory holds one page. A truncated or
    damaged file, or one that is not a dump, ends with a BadRow with the byte offset; an article that cannot be parsed
    becomes a BadRow and does not affect the others. Raises DataError if the file is empty.
    """
    stream = Bzip2Stream(file) if name.endswith(".bz2") else _PlainStream(file)
    try:
        for page in _pages(stream):
            text = _wikitext(page)
            if text is not None:
                yield _article(page, text, name, stream.byte)
    except DamagedFileError as error:
        yield BadRow(name, None, f"{error}. The rest of the file is lost.", error.byte)
    except ParseError as error:
        if not stream.byte:
            raise DataError(
                f"{name} is empty. Download it again, or name another file with --set data.path=FILE."
            ) from None
        line, column = getattr(error, "position", (1, 0))  # mwxml does not set it for the first element
        reason = f"not well-formed XML at line {line}, column {column} of the text ({error.msg.split(':')[0]})"
        yield BadRow(name, None, f"{reason}. The rest of the file is lost.", stream.byte)
    except (MalformedXML, AssertionError, ValueError, TypeError, AttributeError) as error:
        # mwxml raises these for XML that is not a dump: another root, a page without a title, an id that is not a number.
        reason = f"not a MediaWiki dump ({type(error).__name__}: {error})".replace(": )", ")")
        yield BadRow(name, None, f"{reason}. The rest of the file is lost.", stream.byte)


def plain_text(wikitext: str) -> str:
    """The readable text: without templates, tables, footnotes, pictures, formulas and categories; links become their text.

    Paragraphs and headings are separated by a blank line. An entity that is not a character (half a UTF-16 pair) becomes
    U+FFFD. Raises mwparserfromhell's ParserError if it cannot parse the text.
    """
    text = "".join(_strip(mwparserfromhell.parse(wikitext)))
    text = text.encode("utf-16", "surrogatepass").decode(
        "utf-16", "replace"
    )  # joins surrogate pairs written as two entities
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
        root.element.clear()  # otherwise the tree keeps an empty element for every page
    for _ in root.pointer.etree_events:  # mwxml stops at </mediawiki>; raises if anything follows
        pass


def _wikitext(page: Page) -> str | None:
    """The text of the page's last revision; None if the page is not an article."""
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
