import bz2
import gzip
import io
import lzma
import re
from collections.abc import Iterable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.data import wikidump, wikitext
from cpo_ray.data.rows import Article, BadRow, ReadingCounts
from cpo_ray.data.wikidump import read_wikidump
from cpo_ray.errors import DataError
from tests.data.dumps import DUMPS, HEAD, dump, page

XML_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=60)


def read(content: bytes, name: str = "wiki.xml.bz2") -> list[Article | BadRow]:
    stored = bz2.compress(content) if name.endswith(".bz2") else content
    return articles_of(read_wikidump(io.BytesIO(stored), name))


def articles_of(records: Iterable[object]) -> list[Article | BadRow]:
    return [record for record in records if isinstance(record, Article | BadRow)]


def counts_of(content: bytes) -> dict[str, int]:
    *_, counts = read_wikidump(io.BytesIO(content), "wiki.xml")
    assert isinstance(counts, ReadingCounts)
    return counts.counts


@pytest.mark.parametrize("name", ["wiki.xml", "wiki.xml.bz2"])
def test_only_articles_are_read(name: str) -> None:
    content = dump(
        page("Cod", "A '''cod''' is a [[fish]]."),
        page("Codfish", "#REDIRECT [[Cod]]", redirect="Cod"),
        page("Old redirect", "#redirect [[Cod]]"),
        page("Talk:Cod", "Is it?", ns=1),
        page("Styles", "{}", model="css"),
        page("Nothing", ""),
        page("Edited", "first", "second"),
    )
    assert read(content, name) == [Article("Cod", "A cod is a fish."), Article("Edited", "second")]


def test_a_deleted_text_is_no_article() -> None:
    deleted = page("Gone", "x").replace('<text xml:space="preserve">x</text>', '<text deleted="deleted" />')
    assert read(dump(deleted, page("Cod", "A fish."))) == [Article("Cod", "A fish.")]


@given(st.lists(st.tuples(XML_TEXT.filter(str.strip), XML_TEXT), max_size=4), st.sampled_from(["w.xml", "w.xml.bz2"]))
def test_articles_with_any_text_are_read(pages: list[tuple[str, str]], name: str) -> None:
    records = read(dump(*(page(title, text) for title, text in pages)), name)
    whole = [pair for pair in pages if pair[1].strip() and not re.match(r"\s*#redirect\b", pair[1], re.IGNORECASE)]
    assert len(records) == len(whole)
    assert all(isinstance(record, Article) for record in records)


@given(st.data())
def test_a_truncated_dump_gives_its_whole_articles_and_the_byte(data: st.DataObject) -> None:
    pages = [page(f"Article {n}", f"Text {n} " * 50) for n in range(8)]
    streams = [bz2.compress(part.encode()) for part in (HEAD, *pages, "</mediawiki>")]
    stored = b"".join(streams)
    cut = data.draw(st.integers(1, len(stored) - 1))
    *articles, bad = articles_of(read_wikidump(io.BytesIO(stored[:cut]), "wiki.xml.bz2"))
    assert isinstance(bad, BadRow)
    assert bad.byte == cut
    assert re.match(rf"wiki\.xml\.bz2: byte {cut}: .*The rest of the file is lost", str(bad))
    assert len(articles) == sum(len(b"".join(streams[: n + 2])) <= cut for n in range(8))


def test_a_damaged_dump_names_the_byte() -> None:
    stored = bytearray(bz2.compress(dump(*(page(f"Article {n}", "Text " * n) for n in range(200)))))
    stored[len(stored) // 2] ^= 1
    (bad,) = articles_of(read_wikidump(io.BytesIO(bytes(stored)), "wiki.xml.bz2"))
    assert "damaged bzip2 data at or shortly before this byte" in str(bad)
    assert isinstance(bad, BadRow)
    assert bad.byte is not None
    assert len(stored) // 2 <= bad.byte <= len(stored)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (dump(page("A", "x"))[:-30], "not well-formed XML at line 8, column .*unclosed token"),
        (dump(page("A", "x")).replace(b"x</text>", b"\xff</text>"), "not well-formed XML at line"),
        (b"just text", "not well-formed XML at line 1, column 0"),
        (b"<html><body/></html>", "not a MediaWiki dump .*the root is <html>"),
        (b"<mediawiki><page/></mediawiki>", "not a MediaWiki dump .*siteinfo"),
        (dump(page("A", "x")).replace(b"<ns>0", b"<ns>zero"), "not a MediaWiki dump"),
        (dump(page("A", "x")).replace(b"<title>A</title>", b""), "not a MediaWiki dump"),
        (dump() + dump(), "not well-formed XML at line .*junk after document element"),
        (dump() + b" " * 50_000 + b"<more/>", "not well-formed XML at line .*junk after document element"),
        (dump("<surprise/>"), "not a MediaWiki dump .*surprise"),
    ],
)
@pytest.mark.parametrize("name", ["wiki.xml", "wiki.xml.bz2"])
def test_a_file_that_is_not_a_dump_is_reported(content: bytes, reason: str, name: str) -> None:
    *_, bad = read(content, name)
    assert isinstance(bad, BadRow)
    assert bad.byte
    assert re.search(reason, bad.reason)


@pytest.mark.parametrize("name", ["wiki.xml", "wiki.xml.bz2"])
def test_an_empty_file_is_an_error(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} is empty"):
        list(read_wikidump(io.BytesIO(b""), name))


def test_an_article_that_cannot_be_parsed_affects_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(text: str) -> object:
        if "bad" in text:
            raise wikitext.ParserError("no idea")
        return original(text)

    original = wikitext.mwparserfromhell.parse
    monkeypatch.setattr(wikitext.mwparserfromhell, "parse", parse)
    first, bad, last = read(dump(page("A", "a"), page("B", "bad"), page("C", "c")))
    assert (type(first), type(last)) == (Article, Article)
    assert "article 'B' cannot be parsed" in str(bad)


def test_pages_are_freed_after_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the XML tree nor the file grows in memory with the number of pages."""
    roots = []

    class Spy(wikidump.ElementIterator):
        @classmethod
        def from_file(cls, f: object) -> object:
            roots.append(super().from_file(f))
            return roots[0]

    monkeypatch.setattr(wikidump, "ElementIterator", Spy)
    content = dump(*(page(f"A {n}", "x") for n in range(2000)))
    most = 0
    for _ in read_wikidump(io.BytesIO(content), "wiki.xml"):
        most = max([most, *(len(root.element) for root in roots)])
    assert 0 < most < 100  # the parser reads 16 kB ahead


@pytest.mark.e2e
def test_the_real_dump() -> None:
    files = sorted(DUMPS.glob("*.bz2"))
    if not files:
        pytest.skip(f"no dump in {DUMPS}")
    with files[0].open("rb") as file:
        articles = articles_of(read_wikidump(file, files[0].name))
    assert len(articles) == 106
    assert all(isinstance(article, Article) for article in articles)
    text = "".join(article.text for article in articles if isinstance(article, Article))
    assert len(text) > 2_500_000
    for markup in ("[[", "]]", "{{", "{|", "|}", "'''", "<ref", "thumb|"):
        assert text.count(markup) < 15, markup


def test_pages_that_are_no_articles_are_counted_by_reason() -> None:
    content = dump(
        page("Cod", "A fish."),
        page("Codfish", "#REDIRECT [[Cod]]", redirect="Cod"),
        page("Dorsch", "#WEITERLEITUNG [[Cod]]"),
        page("Talk:Cod", "Is it?", ns=1),
        page("Styles", "{}", model="css"),
        page("Nothing", ""),
        page("Spaces", " \n"),
    )
    assert counts_of(content) == {
        "redirects": 2, "pages_in_other_namespaces": 1, "pages_of_other_models": 1, "empty_pages": 2, "unclosed_tables": 0,
    }  # fmt: skip


@pytest.mark.parametrize("checksum", ["", ' sha1="abc"'])
def test_the_main_slot_is_the_article(checksum: str) -> None:
    """Export 0.11: other slots of a revision follow in <content>."""
    slot = (
        "<content><role>mediainfo</role><model>x</model><text xml:space='preserve'>no text</text></content></revision>"
    )
    content = dump(page("Cod", "A fish.")).replace(b"</revision>", slot.encode())
    content = content.replace(b"<model>wiki", b"<origin>1</origin><model>wiki")
    content = content.replace(b"<text xml", f"<text{checksum} xml".encode())
    assert read(content, "wiki.xml") == [Article("Cod", "A fish.")]


COMPRESS = {"gz": gzip.compress, "xz": lzma.compress, "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True)}


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_dump_is_read_whatever_compresses_it(ending: str) -> None:
    content = dump(page("Cod", "A fish."), page("Eel", "Long."))
    stored = COMPRESS[ending](content)
    assert len(read(stored, f"wiki.xml.{ending}")) == 2
    *_, bad = read(stored[:-5], f"wiki.xml.{ending}")
    assert isinstance(bad, BadRow)
    assert bad.byte == len(stored) - 5
    assert "truncated. The rest of the file is lost." in bad.reason


def test_a_7z_archive_is_named_with_the_command_that_converts_it() -> None:
    with pytest.raises(DataError, match=r"is a 7z archive.*7z x -so wiki\.xml\.7z \| zstd > wiki\.xml\.zst"):
        read(b"7z\xbc\xaf\x27\x1c\0\4", "wiki.xml.7z")


def test_the_names_of_namespaces_are_those_of_the_dump() -> None:
    picture, old_name = "[[Datei:Dorsch.jpg|mini|Ein Dorsch]]", "[[Bild:Alt.jpg]]"
    content = dump(page("Dorsch", f"Ein [[Fisch]]. {picture} [[Kategorie:Fisch]]{old_name}[[Film: Fisch]]"))
    namespaces = b'<namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace></namespaces>'
    german = content.replace(b'xml:lang="en"', b'xml:lang="de"').replace(b"</namespaces>", namespaces)
    assert read(german) == [Article("Dorsch", "Ein Fisch. Film: Fisch")]
    (article,) = read(content)
    assert isinstance(article, Article)
    assert "Kategorie:Fisch" in article.text
