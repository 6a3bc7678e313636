from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ray.config import PassagesConfig
from cpo_ray.data.passages import CutArticle, cut_article
from cpo_ray.data.rows import Article
from cpo_ray.data.tokenization import Tokenizer, encode, load_tokenizer, train_tokenizer

GPT2 = Path(__file__).parents[2] / "../shared/data/tokenizers"
TEXT = "The quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], 300)  # few merges: most characters beyond ASCII take several tokens


def cut(tokenizer: Tokenizer, text: str, **settings: float) -> CutArticle:
    return cut_article(Article("T", text), tokenizer, PassagesConfig(**settings))  # type: ignore[arg-type]


def test_the_first_share_is_the_prompt(tokenizer: Tokenizer) -> None:
    text = TEXT + "The quick brown fox jumps over. " * 3
    passages = cut(tokenizer, text, tokens=100, min_tokens=10).passages
    lengths = [(len(passage.prompt_ids), len(passage.response_ids)) for passage in passages]
    assert lengths[:-1] == [(15, 85)] * 4
    assert 10 < sum(lengths[-1]) == len(encode(tokenizer, [text], special=False)[0]) % 100
    assert lengths[-1][0] == int(0.15 * sum(lengths[-1]))


def test_a_share_that_is_no_binary_fraction_is_not_rounded_down() -> None:
    assert PassagesConfig(prompt_share=0.29, tokens=100).prompt_tokens(100) == 29
    assert PassagesConfig(prompt_share=0.15).prompt_tokens(256) == 38


def test_texts_are_the_article_cut_where_the_tokens_are(tokenizer: Tokenizer) -> None:
    passages = cut(tokenizer, TEXT, tokens=64, min_tokens=8).passages
    assert "".join(passage.prompt + passage.response for passage in passages) == TEXT
    for passage in passages:
        assert tokenizer.decode(passage.prompt_ids) == passage.prompt
        assert tokenizer.decode(passage.response_ids) == passage.response


def test_the_last_passage_ends_its_article_unless_a_shorter_rest_is_left_out(tokenizer: Tokenizer) -> None:
    (ids,) = encode(tokenizer, [TEXT], special=False)
    rest = len(ids) % 64
    ends = [passage.ends for passage in cut(tokenizer, TEXT, tokens=64, min_tokens=rest).passages]
    assert ends == [False] * (len(ids) // 64) + [True]
    assert not any(passage.ends for passage in cut(tokenizer, TEXT, tokens=64, min_tokens=rest + 1).passages)


def test_an_article_too_short_for_the_cut_has_no_passage(tokenizer: Tokenizer) -> None:
    assert cut(tokenizer, "", tokens=64, min_tokens=8).passages == []
    assert cut(tokenizer, "The quick", tokens=64, min_tokens=8).passages == []


def test_a_short_remainder_of_an_article_is_left_out(tokenizer: Tokenizer) -> None:
    (ids,) = encode(tokenizer, [TEXT], special=False)
    rest = len(ids) % 64
    assert len(cut(tokenizer, TEXT, tokens=64, min_tokens=rest).passages) == len(ids) // 64 + 1
    assert len(cut(tokenizer, TEXT, tokens=64, min_tokens=rest + 1).passages) == len(ids) // 64


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), st.integers(8, 40), st.floats(0.13, 0.7))
def test_any_text_is_cut_between_characters(tokenizer: Tokenizer, text: str, tokens: int, share: float) -> None:
    passages = cut(tokenizer, text, tokens=tokens, min_tokens=8, prompt_share=share).passages
    joined = "".join(passage.prompt + passage.response for passage in passages)
    assert text.startswith(joined)
    assert sum(map(len, encode(tokenizer, [text.removeprefix(joined)], special=False))) < tokens
    for passage in passages:
        assert tokenizer.decode(passage.prompt_ids) == passage.prompt
        assert tokenizer.decode(passage.response_ids) == passage.response
        assert tokens - 3 <= len(passage.prompt_ids) + len(passage.response_ids) <= tokens or passage is passages[-1]
        assert passage.prompt_ids
        assert passage.response_ids


def test_a_special_token_spelled_out_stays_text(tokenizer: Tokenizer) -> None:
    (passage,) = cut(tokenizer, "<|endoftext|> " * 3, tokens=100, min_tokens=8).passages
    assert tokenizer.eos_token_id not in [*passage.prompt_ids, *passage.response_ids]


def test_the_same_article_has_the_same_hash(tokenizer: Tokenizer) -> None:
    one, again, other = (cut(tokenizer, text).content for text in (TEXT, TEXT, TEXT + "."))
    assert one == again != other


def test_with_the_real_gpt2_tokenizer() -> None:
    if not GPT2.is_dir():
        pytest.skip(f"{GPT2} is absent")
    tokenizer = load_tokenizer(str(GPT2))
    text = "Łódź — 東京 ☂️ 👩‍👩‍👧 naïve. " * 30
    passages = cut(tokenizer, text, tokens=40, min_tokens=8).passages
    assert "".join(passage.prompt + passage.response for passage in passages) == text
    assert "\ufffd" not in "".join(tokenizer.decode(passage.prompt_ids) for passage in passages)
