import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.data.wikitext import close_tables, strip_markup


def plain_text(wikitext: str) -> str:
    text, _ = strip_markup(wikitext)
    return text


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
        (
            "Cod[[:Category:Fish]], [[:Image:Cod.jpg|a picture]] and [[:fr:Morue]].",
            "CodCategory:Fish, a picture and fr:Morue.",
        ),
        ("[[category:Fish]]A[[ File : Cod.jpg ]][[IMAGE:Cod.jpg]]B", "AB"),
        ("Cod. __NOTOC__\n\n__NoEditSection____FORCETOC__Eel.", "Cod.\n\nEel."),
        ("__KEIN_INHALTSVERZEICHNIS__ Aal __\u76ee\u6b21\u975e\u8868\u793a__ __INDEXIEREN__", "Aal"),
        (
            "__init__, __FILE__, ____, __ A __, <nowiki>__NOTOC__</nowiki>",
            "__init__, __FILE__, ____, __ A __, __NOTOC__",
        ),
        ("", ""),
    ],
)
def test_wikitext_is_stripped(wikitext: str, text: str) -> None:
    assert plain_text(wikitext) == text


@given(st.text(alphabet="[]{}|='<>/ab\n*#:!-&;", max_size=120))
def test_any_markup_can_be_stripped(wikitext: str) -> None:
    assert isinstance(plain_text(wikitext), str)


@pytest.mark.parametrize(
    ("wikitext", "text", "unclosed"),
    [
        ("Before\n{| class=x\n| a\n\nIn it.\n== Life ==\nAfter", "Before\n\nLife\n\nAfter", 1),
        ("Before\n{| class=x\n| a\nto the end", "Before", 1),
        ("Before\n{|\n|\n== In the table ==\n|}\nAfter", "Before\n\nAfter", 0),
        ("Before\n{|\n| a\n{|\n| b\n|}\n== Life ==\nA\n{|\n| c\n|}\nB", "Before\n\nLife\n\nA\n\nB", 1),
        ("Before\n:{|\n| a\n{|\n| b\n== Life ==\nAfter", "Before\n\nLife\n\nAfter", 2),
        ("Before\n:{|\n| a\n|}\n :: {| class=x\n| b\n|}\nAfter", "Before\n\nAfter", 0),
        ("<nowiki>\n{| x</nowiki> After", "{| x After", 0),
        ("A set {|x|} in a line", "A set {|x|} in a line", 0),
    ],
)
def test_a_table_without_end_extends_to_the_next_heading_or_the_end(wikitext: str, text: str, unclosed: int) -> None:
    assert strip_markup(wikitext) == (text, unclosed)


@given(st.text(alphabet="{|}=a\n:", max_size=60))
def test_closing_tables_only_adds_ends(wikitext: str) -> None:
    closed, unclosed = close_tables(wikitext)
    assert len(closed) == len(wikitext) + unclosed * len("\n|}\n")
    assert close_tables(closed)[1] == 0
