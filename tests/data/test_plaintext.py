import bz2
import io
import lzma

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.data.plaintext import ARTICLE_CHARACTERS, read_plaintext
from cpo_ray.data.rows import Article, BadRow, FileFormat
from cpo_ray.errors import DataError


def read(text: str | bytes, name: str = "some/wiki.txt") -> list[Article | BadRow]:
    records = read_plaintext(io.BytesIO(text.encode() if isinstance(text, str) else text), name)
    return [record for record in records if not isinstance(record, FileFormat)]


def test_wikitext_headings_begin_articles() -> None:
    text = " \n = Homarus gammarus = \n \n A lobster . \n \n = = Description = = \n \n Large . \n = Cod = \n A fish .\n"
    assert read(text) == [
        Article("Homarus gammarus", "= Homarus gammarus = \n \n A lobster . \n \n = = Description = = \n \n Large ."),
        Article("Cod", "= Cod = \n A fish ."),
    ]


def test_text_without_headings_is_cut_at_blank_lines() -> None:
    paragraph = "word " * 5000
    first, second, third = read("\n\n".join([paragraph] * 8))
    assert [article.title for article in (first, second, third) if isinstance(article, Article)] == [
        "wiki.txt 1",
        "wiki.txt 2",
        "wiki.txt 3",
    ]
    assert isinstance(first, Article)
    assert ARTICLE_CHARACTERS <= len(first.text) < ARTICLE_CHARACTERS + 2 * len(paragraph)


def test_a_long_article_continues_under_its_title() -> None:
    articles = read(" = Long = \n" + "\n\n".join(["word " * 5000] * 8))
    assert len(articles) > 1
    assert {article.title for article in articles if isinstance(article, Article)} == {"Long"}


def test_a_line_that_is_not_utf8_affects_no_other() -> None:
    bad, article = read(b"one\ncaf\xe9\ntwo\n")
    assert str(bad) == "some/wiki.txt:2: not UTF-8: byte 0xe9 at position 3"
    assert article == Article("wiki.txt 1", "one\ntwo")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff\0"), min_size=1).filter(str.strip))
def test_no_text_is_lost(text: str) -> None:
    articles = read(text)
    kept = "".join(article.text for article in articles if isinstance(article, Article))
    assert "".join(kept.split()) == "".join(text.split())


def test_a_bom_crlf_and_compression_are_no_content() -> None:
    text = " = Cod = \r\nA fish .\r\n"
    for stored in (text.encode(), "\ufeff".encode() + text.encode(), lzma.compress(text.encode("utf-8-sig"))):
        assert read(stored) == [Article("Cod", "= Cod = \nA fish .")]


def test_utf16_is_named() -> None:
    with pytest.raises(DataError, match=r"wiki\.txt is UTF-16.*iconv"):
        read("text".encode("utf-16"))


def test_a_truncated_compressed_text_is_reported() -> None:
    (bad,) = read(bz2.compress(b" = Cod = \nA fish .\n")[:-3])
    assert isinstance(bad, BadRow)
    assert "it is truncated. The rest of the file is lost." in str(bad)
