import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cpo_ray.config import TokenizerConfig
from cpo_ray.data.tokenization import EOS, Tokenizer, encode, load_tokenizer, make_tokenizer, train_tokenizer
from cpo_ray.errors import DataError

TEXTS = [f"Add {n} and {n + 3}. The sum is {2 * n + 3}." for n in range(200)]
GPT2 = Path(__file__).parents[2] / "../shared/data/tokenizers"


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(TEXTS, 270)


@pytest.fixture
def gpt2_files(tmp_path: Path) -> Path:
    (tmp_path / "my_vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, EOS: 3}))
    (tmp_path / "my_merges.txt").write_text("#version: 0.2\na b\n")
    return tmp_path


def test_training_is_deterministic(trained: Tokenizer) -> None:
    again = train_tokenizer(iter(TEXTS), 270)
    assert again.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()
    assert len(trained) == 270
    assert trained.eos_token == trained.pad_token == EOS


@given(st.text())
def test_any_text_survives_the_round_trip(trained: Tokenizer, text: str) -> None:
    (ids,) = encode(trained, [text], special=True)
    assert trained.decode(ids) == text
    assert trained.eos_token_id not in ids


def test_digits_stand_alone(trained: Tokenizer) -> None:
    (ids,) = encode(trained, [" 1234"], special=False)
    assert [trained.decode([index]) for index in ids] == [" 1", "2", "3", "4"]


def test_saved_tokenizer_loads_and_encodes_alike(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path / "tokenizer")
    loaded = make_tokenizer(TokenizerConfig(path=str(tmp_path / "tokenizer")), ())
    assert encode(loaded, TEXTS, special=True) == encode(trained, TEXTS, special=True)
    assert loaded.is_fast
    assert (loaded.eos_token_id, loaded.pad_token_id) == (trained.eos_token_id, trained.eos_token_id)


def test_gpt2_style_files(gpt2_files: Path) -> None:
    tokenizer = load_tokenizer(str(gpt2_files))
    assert encode(tokenizer, ["abba"], special=True) == [[2, 1, 0]]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 3


def test_real_gpt2_tokenizer() -> None:
    if not GPT2.is_dir():
        pytest.skip(f"{GPT2} is absent")
    tokenizer = load_tokenizer(str(GPT2))
    assert encode(tokenizer, ["Hello world, it's 2024!"], special=True) == [[15496, 995, 11, 340, 338, 48609, 0]]
    assert (len(tokenizer), tokenizer.eos_token_id) == (50257, 50256)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("my_vocab.json", '{"a": 0, ', "my_vocab.json is not a JSON vocabulary"),
        ("my_vocab.json", '["a"]', "is not a vocabulary"),
        ("my_vocab.json", '{"a": "0"}', "is not a vocabulary"),
        ("my_vocab.json", '{"a": 0, "b": 1, "ab": 2}', r"has no <\|endoftext\|>"),
        ("my_merges.txt", "#version: 0.2\na b\na c\n", "my_merges.txt:3: the merge 'a c'"),
        ("my_merges.txt", "ab\n", "my_merges.txt:1: the merge 'ab'"),
    ],
)
def test_damaged_gpt2_files_are_named(gpt2_files: Path, file: str, content: str, reason: str) -> None:
    (gpt2_files / file).write_text(content)
    with pytest.raises(DataError, match=reason):
        load_tokenizer(str(gpt2_files))


@pytest.mark.parametrize("content", ["{", "{}", '{"version": "1.0", "added_tokens": [], "model": {"type": "Odd"}}'])
def test_damaged_tokenizer_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="cannot be loaded as a tokenizer"):
        load_tokenizer(str(tmp_path))


def test_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be loaded as a tokenizer.*one \*vocab\.json"):
        load_tokenizer(str(tmp_path))


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no directory"):
        load_tokenizer(str(tmp_path / "absent"))


def test_tokenizer_without_eos_is_refused(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(DataError, match="has no EOS token"):
        load_tokenizer(str(tmp_path))


POST_PROCESSORS = {"none": "$A", "BOS": "<s> $A", "BOS and EOS": "<s> $A </s>", "EOS": "$A </s>"}


def with_post_processor(tokenizer: Tokenizer, template: str, folder: Path) -> Tokenizer:
    """A copy with <s> and </s>, which its post-processor puts around a text."""
    tokenizer.save_pretrained(folder)
    copy = PreTrainedTokenizerFast.from_pretrained(folder, bos_token="<s>", eos_token="</s>")
    special = [(token, copy.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    copy.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    copy.save_pretrained(folder)
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("name", POST_PROCESSORS)
def test_a_prompt_begins_with_bos_where_the_tokenizer_says_so_and_never_ends_with_a_special_token(
    trained: Tokenizer, tmp_path: Path, name: str
) -> None:
    tokenizer = with_post_processor(trained, POST_PROCESSORS[name], tmp_path)
    text = "Add 3 and </s> 4."
    (plain,) = encode(tokenizer, [text], special=False)
    (prompt,) = encode(tokenizer, [text], special=True)
    assert prompt == [*([tokenizer.bos_token_id] if "BOS" in name else []), *plain]
    assert set(plain).isdisjoint(tokenizer.all_special_ids)
    assert encode(tokenizer, [""], special=True) == [prompt[: len(prompt) - len(plain)]]


def test_bos_comes_once_where_the_post_processor_adds_it_twice(trained: Tokenizer, tmp_path: Path) -> None:
    tokenizer = with_post_processor(trained, "<s> <s> $A", tmp_path)
    (plain,) = encode(tokenizer, ["Add 3."], special=False)
    assert encode(tokenizer, ["Add 3."], special=True) == [[tokenizer.bos_token_id, *plain]]


def test_the_reported_tokenizer_that_appends_eos() -> None:
    reported = Path(__file__).parents[2] / "../shared/reports/tokenizer_appends_eos"
    if not reported.is_dir():
        pytest.skip(f"{reported} is absent")
    tokenizer = load_tokenizer(str(reported))
    (prompt,) = encode(tokenizer, ["Add 3."], special=True)
    assert prompt[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in prompt


def test_a_tokenizer_needs_no_padding_token_and_is_saved_as_it_is(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(str(tmp_path)).pad_token is None
