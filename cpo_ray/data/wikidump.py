"""Reads MediaWiki XML dumps as a stream of plain-text articles. The only file that imports mwxml."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, NamedTuple
from xml.etree.ElementTree import ParseError

from mwxml import Dump, Page
from mwxml.element_iterator import ElementIterator
from mwxml.errors import MalformedXML

from cpo_ray.data.objects import LOST
from cpo_ray.data.rows import Article, BadRow, FileFormat, ReadingCounts
from cpo_ray.data.wikitext import ENGLISH_NAMES, ParserError, strip_markup
from cpo_ray.errors import DataError
from cpo_ray.files.compression import DamagedFileError, open_stream

ARTICLES, MEDIA, FILES, CATEGORIES = 0, -2, 6, 14  # numbers of namespaces, the same in every wiki
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
REDIRECT = re.compile(r"\s*#(redirect\b|[^\W\d_]+\s*:?\s*\[\[[^\]\n]+\]\])", re.IGNORECASE)
"""Old dumps mark redirects only in the text, in the wiki's language: `#WEITERLEITUNG [[...]]`."""
ALIASES = {
    "ar": "صورة", "ca": "imatge", "cs": "soubor", "da": "billede", "de": "bild", "el": "εικόνα", "es": "imagen", "fi": "kuva",
    "he": "תמונה", "hu": "kép", "id": "gambar", "it": "immagine", "ja": "画像", "ko": "그림", "nb": "bilde", "nl": "afbeelding",
    "no": "bilde", "pl": "grafika", "pt": "imagem", "ro": "imagine", "ru": "изображение", "sk": "obrázok", "sv": "bild",
    "tr": "resim", "uk": "зображення", "vi": "hình", "zh": "图像",
}  # fmt: skip
"""Older names of the namespace of files, by language, from MediaWiki's languages/messages. A dump has only the newest."""


class Revision(NamedTuple):
    """The main slot of a page's revision. Other slots (export 0.11: `<content>`) are no article."""

    model: str | None
    text: str | None


class _MainSlotPage(Page):
    """mwxml's Page gives the main slot only if it has a checksum, so revisions are read here."""

    @classmethod
    def load_revisions(cls, first_revision: Any, element: Any) -> Iterator[Revision]:
        if first_revision is not None:
            yield _read_revision(first_revision)
        for sub_element in element:
            if sub_element.tag != "revision":
                raise MalformedXML(f"<revision> is expected, not <{sub_element.tag}>")
            yield _read_revision(sub_element)

    def __iter__(self) -> Iterator[Revision]:
        while (revision := next(self._revisions, None)) is not None:
            yield revision

    def initialize(self, *args: Any, revisions: Iterator[Revision], **kwargs: Any) -> None:
        super().initialize(*args, revisions=revisions, **kwargs)
        self._revisions = revisions


class _MainSlotDump(Dump):
    @classmethod
    def process_item(cls, item_element: Any, namespace_map: Any) -> Any:
        if item_element.tag == "page":
            return _MainSlotPage.from_element(item_element, namespace_map)
        return super().process_item(item_element, namespace_map)


def read_wikidump(file: IO[bytes], name: str) -> Iterator[FileFormat | Article | BadRow | ReadingCounts]:
    """Stream a dump's format and its articles as plain text: namespace 0, no redirects, the last revision of each page.

    The pages that are left out come last, counted by reason. name: the file's name in messages. Memory holds one page. A
    truncated or damaged file, or one that is not a dump, ends with a BadRow with the byte offset; an article that cannot be
    parsed becomes a BadRow and does not affect the others. Raises DataError if the file is empty, or a 7z archive.
    """
    stream = open_stream(file, name)
    yield FileFormat.of(name, "MediaWiki XML", stream.compression)
    counts: Counter[str] = Counter()
    try:
        dump = _open_dump(stream)
        for page in dump.pages:
            text = _wikitext(page, counts)
            if text is not None:
                yield _article(page, text, dump.names, name, stream.byte, counts)
    except DamagedFileError as error:
        yield BadRow(name, None, f"{error}. {LOST}", error.byte)
    except ParseError as error:
        if not stream.byte:
            raise DataError(
                f"{name} is empty. Download it again, or name another file with --set data.path=FILE."
            ) from None
        line, column = getattr(error, "position", (1, 0))  # mwxml does not set it for the first element
        reason = f"not well-formed XML at line {line}, column {column} of the text ({error.msg.split(':')[0]})"
        yield BadRow(name, None, f"{reason}. {LOST}", stream.byte)
    except (MalformedXML, AssertionError, ValueError, TypeError, AttributeError) as error:
        # mwxml raises these for XML that is not a dump: another root, a page without a title, an id that is not a number.
        reason = f"not a MediaWiki dump ({type(error).__name__}: {error})".replace(": )", ")")
        yield BadRow(name, None, f"{reason}. {LOST}", stream.byte)
    yield ReadingCounts(dict(counts))


class _OpenDump(NamedTuple):
    pages: Iterator[_MainSlotPage]
    names: frozenset[str]  # of the namespaces of files and categories


def _open_dump(stream: Any) -> _OpenDump:
    root = ElementIterator.from_file(stream)
    if root.tag != "mediawiki":
        raise MalformedXML(f"the root is <{root.tag}>, not <mediawiki>")
    dump = _MainSlotDump.from_element(root)
    return _OpenDump(_pages(root, dump), _link_names(dump.site_info.namespaces or (), root.attr(LANGUAGE) or ""))


def _link_names(namespaces: Any, language: str) -> frozenset[str]:
    """The names of the namespaces of files, media and categories: the wiki's own, older ones and the English ones."""
    own = {space.name.casefold() for space in namespaces if int(space.id) in {MEDIA, FILES, CATEGORIES} and space.name}
    aliases = {ALIASES[code] for code in (language, language.partition("-")[0]) if code in ALIASES}
    return ENGLISH_NAMES | own | aliases


def _pages(root: ElementIterator, dump: _MainSlotDump) -> Iterator[_MainSlotPage]:
    for page in dump.pages:
        yield page
        root.element.clear()  # otherwise the tree keeps an empty element for every page
    for _ in root.pointer.etree_events:  # mwxml stops at </mediawiki>; raises if anything follows
        pass


def _read_revision(element: Any) -> Revision:
    model = text = None
    for sub_element in element:
        if sub_element.tag == "model":
            model = sub_element.text
        elif sub_element.tag == "text":
            text = sub_element.text
    return Revision(model, text)


def _wikitext(page: _MainSlotPage, counts: Counter[str]) -> str | None:
    """The text of the page's last revision; None if the page is not an article, which is counted by reason."""
    if page.namespace != ARTICLES:
        counts["pages_in_other_namespaces"] += 1
        return None
    if page.redirect is not None:
        counts["redirects"] += 1
        return None
    last: Revision | None = None
    for revision in page:
        last = revision
    if last is None or not (last.text or "").strip():
        counts["empty_pages"] += 1
    elif last.model not in (None, "wikitext"):
        counts["pages_of_other_models"] += 1
    elif REDIRECT.match(last.text or ""):
        counts["redirects"] += 1
    else:
        return last.text
    return None


def _article(
    page: _MainSlotPage, wikitext: str, names: frozenset[str], name: str, byte: int, counts: Counter[str]
) -> Article | BadRow:
    try:
        text, unclosed_tables = strip_markup(wikitext, names)
    except ParserError as error:
        return BadRow(name, None, f"article {page.title!r} cannot be parsed ({error})", byte)
    counts["unclosed_tables"] += unclosed_tables
    return Article(page.title.strip(), text)
