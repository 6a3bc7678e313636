"""Text that becomes a candidate is tokenized as the data stage tokenizes the ground truth."""

import pytest

from cpo_ray.data.tokenization import EOS, encode, train_tokenizer
from cpo_ray.sampling.responses import count_tokens, encode_responses, load_tokenizer

TEXTS = ["count the apples", f"ends {EOS} here", "", " two  blanks\n", "äöü 🌍 \x00", "apples " * 50]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["count the apples", "two pears and ten apples"], 300)


def test_a_response_is_tokenized_as_in_the_data_stage_and_ends_with_eos_unless_it_is_cut(tokenizer):
    encoded = encode_responses(tokenizer, TEXTS, 16)
    for text, plain, tokens in zip(TEXTS, encode(tokenizer, TEXTS, special=False), encoded, strict=True):
        assert tokens == ([*plain, tokenizer.eos_token_id] if len(plain) < 16 else plain[:16]), text
    assert [tokens[-1] == tokenizer.eos_token_id for tokens in encoded] == [len(tokens) < 16 for tokens in encoded]
    assert encode_responses(tokenizer, [], 16) == []


def test_tokens_of_whole_texts_are_counted(tokenizer):
    assert count_tokens(tokenizer, TEXTS) == [len(ids) for ids in encode(tokenizer, TEXTS, special=False)]


def test_a_tokenizer_is_loaded_once_per_process(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path) is loaded
    assert encode_responses(loaded, TEXTS, 16) == encode_responses(tokenizer, TEXTS, 16)
