"""Strips wikitext to readable text. The only file that imports mwparserfromhell."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import mwparserfromhell
from mwparserfromhell.nodes import Heading, HTMLEntity, Tag, Text, Wikilink
from mwparserfromhell.parser import ParserError

__all__ = ["ENGLISH_NAMES", "ParserError", "strip_markup"]

ENGLISH_NAMES = frozenset({"file", "image", "media", "category"})
"""Names of the namespaces whose links are not part of the text. Every wiki knows the English ones beside its own."""
OTHER_LANGUAGE = re.compile(r"\s*([a-z]{2,3}(-[a-z-]+)?:\S|simple:\S)")  # the article in another language
FIGURES = {"table", "gallery", "imagemap", "timeline", "graph", "mapframe", "maplink", "score"}
FORMULAS = {"math", "chem", "ce", "hiero", "source", "syntaxhighlight"}
DROPPED_TAGS = {"ref", "references", "categorytree", "inputbox", "section", "templatedata"} | FIGURES | FORMULAS
LITERAL_TAGS = {"nowiki", "pre"}
SWITCH = re.compile(r"__([^\W\d_]+(?:_[^\W\d_]+)*)__")
SWITCHES = {
    "NOTOC", "FORCETOC", "TOC", "NOEDITSECTION", "NEWSECTIONLINK", "NONEWSECTIONLINK", "NOGALLERY", "HIDDENCAT",
    "EXPECTUNUSEDCATEGORY", "EXPECTUNUSEDTEMPLATE", "NOCONTENTCONVERT", "NOCC", "NOTITLECONVERT", "NOTC", "INDEX", "NOINDEX",
    "STATICREDIRECT", "DISAMBIG", "NOGLOBAL", "START", "END",
}  # fmt: skip
"""Behaviour switches of MediaWiki in English: https://www.mediawiki.org/wiki/Help:Magic_words. Their case does not count."""
MACROS = {
    "FILE",
    "LINE",
    "DIR",
    "FUNCTION",
    "CLASS",
    "METHOD",
    "NAMESPACE",
    "TRAIT",
    "DATE",
    "TIME",
    "COUNTER",
    "VA_ARGS",
}
"""Upper-case words of programming languages with two underscores. MediaWiki shows them."""
OPEN_TABLE = re.compile(r"^[ \t:]*(?=\{\|)", re.MULTILINE)
TABLE_MARKS = re.compile(
    r"^[ \t:]*(?P<open>\{\|)|^[ \t:]*(?P<close>\|\})(?!\})|^(?P<heading>=+[^=\n].*=)[ \t]*$", re.MULTILINE
)
HIDDEN = re.compile(r"<!--.*?-->|<(nowiki|pre)\b[^>]*>.*?</\1>", re.DOTALL | re.IGNORECASE)
EMPTY_BRACKETS = re.compile(r"[ \t]*\([\s,;:\u2013\u2014-]*\)")  # left behind by a template or a pronunciation
LONE_COMMA = re.compile(r" +([,;])")
BLANKS = re.compile(r"[ \t\u00a0]+")
PARAGRAPHS = re.compile(r"\s*\n\s*\n\s*")


def strip_markup(wikitext: str, names: frozenset[str] = ENGLISH_NAMES) -> tuple[str, int]:
    """(the readable text, the number of tables without an end).

    Templates, tables, footnotes, pictures, formulas, categories and behaviour switches are left out; links become their
    text. A table without an end extends to the next heading, or to the end of the text. Paragraphs and headings are
    separated by a blank line. An entity that is not a character (half a UTF-16 pair) becomes U+FFFD.

    names: namespaces of files and categories, in lower case. Raises ParserError if the text cannot be parsed.
    """
    text = "".join(_strip(mwparserfromhell.parse(wikitext), names))
    unclosed = 0
    if OPEN_TABLE.search(text):  # the parser leaves a table in the text that has no end, or that is indented
        closed, unclosed = close_tables(OPEN_TABLE.sub("", wikitext))
        text = "".join(_strip(mwparserfromhell.parse(closed), names))
    return _tidy(text), unclosed


def close_tables(wikitext: str) -> tuple[str, int]:
    """The text with an end for each table that has none, before the next heading or at the end; and how many they are."""
    visible = HIDDEN.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), wikitext)
    opened: list[int] = []
    tables: list[tuple[int, int]] = []
    headings: list[int] = []
    for mark in TABLE_MARKS.finditer(visible):
        if mark["open"]:
            opened.append(mark.start())
        elif mark["heading"]:
            headings.append(mark.start())
        elif opened:
            tables.append((opened.pop(), mark.end()))
    outside = [place for place in headings if not any(start < place < end for start, end in tables)]
    ends = sorted(next((place for place in outside if place > start), len(wikitext)) for start in opened)
    pieces = [wikitext[start:end] for start, end in itertools.pairwise([0, *ends, len(wikitext)])]
    return "\n|}\n".join(pieces), len(opened)


def _tidy(text: str) -> str:
    # Joins surrogate pairs that are written as two entities.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = LONE_COMMA.sub(r"\1", EMPTY_BRACKETS.sub("", BLANKS.sub(" ", text)))
    paragraphs = (
        "\n".join(stripped for line in paragraph.split("\n") if (stripped := line.strip()))
        for paragraph in PARAGRAPHS.split(text)
    )
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _strip(code: Any, names: frozenset[str], literal: bool = False) -> Iterator[str]:
    """literal: the text is shown as it is, so behaviour switches stay."""
    for node in code.nodes:
        if isinstance(node, Text):
            yield node.value if literal else SWITCH.sub(_keep_word, node.value)
        elif isinstance(node, Wikilink):
            yield from _strip_link(node, names)
        elif isinstance(node, Heading):
            yield from itertools.chain(["\n\n"], _strip(node.title, names), ["\n\n"])
        elif isinstance(node, Tag):
            yield from _strip_tag(node, names)
        elif isinstance(node, HTMLEntity):
            yield node.normalize()
        else:  # templates, comments, arguments, external links
            yield node.__strip__(normalize=True, collapse=False, keep_template_params=False) or ""


def _strip_link(link: Wikilink, names: frozenset[str]) -> Iterator[str]:
    title = str(link.title)
    namespace, colon, _ = title.partition(":")
    if (colon and " ".join(namespace.replace("_", " ").split()).casefold() in names) or OTHER_LANGUAGE.match(title):
        return
    if link.text is not None:
        yield from _strip(link.text, names)
    else:
        text = "".join(_strip(link.title, names))
        yield (
            text.strip().removeprefix(":") if title.lstrip().startswith(":") else text
        )  # `:` makes a link of a category


def _strip_tag(tag: Tag, names: frozenset[str]) -> Iterator[str]:
    name = str(tag.tag).strip().lower()
    if name == "br":
        yield "\n"
    elif name not in DROPPED_TAGS and tag.contents is not None:
        yield from _strip(tag.contents, names, literal=name in LITERAL_TAGS)


def _keep_word(switch: re.Match[str]) -> str:
    """Nothing for a behaviour switch, in any language: a word in capitals, or in a script without them."""
    word = switch[1]
    is_switch = word.upper() in SWITCHES or (word == word.upper() and word not in MACROS)
    return "" if is_switch else switch[0]
