import bz2
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.data import wikidump
from cpo_ray.data.rows import Article, BadRow
from cpo_ray.data.wikidump import plain_text, read_wikidump
from cpo_ray.errors import DataError
from tests.data.dumps import DUMPS, HEAD, dump, page

XML_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=60)


def read(content: bytes, name: str = "wiki.xml.bz2") -> list[Article | BadRow]:
    stored = bz2.compress(content) if name.endswith(".bz2") else content
    return list(read_wikidump(io.BytesIO(stored), name))


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


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{Infobox|a={{b|c}}}}The '''cod''' (''Gadus'') is [[Gadidae|a fish]].", "The cod (Gadus) is a fish."),
        ("One.<ref name=a>Not ''this''.</ref> Two.<ref name=a /> Three.", "One. Two. Three."),
        ("A [[File:Cod.jpg|thumb|A [[cod]].]] B [[Category:Fish| ]][[fr:Morue]]C", "A B C"),
        ("See [[CSI: Miami]] and [[:Category:Fish|all fish]].", "See CSI: Miami and all fish."),
        ("Before\n{| class=x\n! a\n|-\n| b\n|}\nAfter", "Before\n\nAfter"),
        ("<!-- hidden -->Shown<br>below <math>x^2</math>", "Shown\nbelow"),
        ("The word ({{lang|gr|x}}, {{IPA|y}}) means {{w}}, well", "The word means, well"),
        ("Intro.\n== Life ==\nBorn.\n\n\n\n=== Late ===\n* one\n* two", "Intro.\n\nLife\n\nBorn.\n\nLate\n\none\ntwo"),
        ("[https://x.org A site] &amp; a&nbsp;&szlig; [https://x.org]", "A site & a ß"),
        ("a &#xD83D;&#xDE00; b &#xD83D;c &#xDE00;d", "a \N{GRINNING FACE} b \ufffdc \ufffdd"),
        ("<nowiki>[[kept]]</nowiki> {{unclosed", "[[kept]] {{unclosed"),
        ("", ""),
    ],
)
def test_wikitext_is_stripped(wikitext: str, text: str) -> None:
    assert plain_text(wikitext) == text


@given(st.lists(st.tuples(XML_TEXT.filter(str.strip), XML_TEXT), max_size=4), st.sampled_from(["w.xml", "w.xml.bz2"]))
def test_articles_with_any_text_are_read(pages: list[tuple[str, str]], name: str) -> None:
    records = read(dump(*(page(title, text) for title, text in pages)), name)
    whole = [pair for pair in pages if pair[1] and not re.match(r"\s*#redirect\b", pair[1], re.IGNORECASE)]
    assert len(records) == len(whole)
    assert all(isinstance(record, Article) for record in records)


@given(st.text(alphabet="[]{}|='<>/ab\n*#:!-&;", max_size=120))
def test_any_markup_can_be_stripped(wikitext: str) -> None:
    assert isinstance(plain_text(wikitext), str)


@given(st.data())
def test_a_truncated_dump_gives_its_whole_articles_and_the_byte(data: st.DataObject) -> None:
    pages = [page(f"Article {n}", f"Text {n} " * 50) for n in range(8)]
    streams = [bz2.compress(part.encode()) for part in (HEAD, *pages, "</mediawiki>")]
    stored = b"".join(streams)
    cut = data.draw(st.integers(1, len(stored) - 1))
    *articles, bad = read_wikidump(io.BytesIO(stored[:cut]), "wiki.xml.bz2")
    assert isinstance(bad, BadRow)
    assert bad.byte == cut
    assert re.match(rf"wiki\.xml\.bz2: byte {cut}: .*The rest of the file is lost", str(bad))
    assert len(articles) == sum(len(b"".join(streams[: n + 2])) <= cut for n in range(8))


def test_a_damaged_dump_names_the_byte() -> None:
    stored = bytearray(bz2.compress(dump(*(page(f"Article {n}", "Text " * n) for n in range(200)))))
    stored[len(stored) // 2] ^= 1
    (bad,) = read_wikidump(io.BytesIO(bytes(stored)), "wiki.xml.bz2")
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
            raise wikidump.ParserError("no idea")
        return original(text)

    original = wikidump.mwparserfromhell.parse
    monkeypatch.setattr(wikidump.mwparserfromhell, "parse", parse)
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
        most = max(most, len(roots[0].element))
    assert most < 100  # the parser reads 16 kB ahead


@pytest.mark.e2e
def test_the_real_dump() -> None:
    files = sorted(DUMPS.glob("*.bz2"))
    if not files:
        pytest.skip(f"no dump in {DUMPS}")
    with files[0].open("rb") as file:
        articles = list(read_wikidump(file, files[0].name))
    assert len(articles) == 106
    assert all(isinstance(article, Article) for article in articles)
    text = "".join(article.text for article in articles if isinstance(article, Article))
    assert len(text) > 2_500_000
    for markup in ("[[", "]]", "{{", "{|", "|}", "'''", "<ref", "thumb|"):
        assert text.count(markup) < 15, markup
