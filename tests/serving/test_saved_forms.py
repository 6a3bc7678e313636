"""Models that differ in how they were saved, and models that differ in what they compute."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cpo_ray.errors import ArtifactError
from cpo_ray.inference.weight_files import WEIGHTS
from cpo_ray.serving.compatibility import check_compatible
from cpo_ray.serving.merging import average_models, merge_models
from tests.serving.tiny_llama import END, write_tiny_llama

Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "original", seed=1)


@pytest.fixture
def pair(original: Path, tmp_path: Path) -> tuple[Path, Path]:
    return shutil.copytree(original, tmp_path / "one"), shutil.copytree(original, tmp_path / "two")


def edit(name: str, **changes: Any) -> Edit:
    """Set keys of a JSON file; None removes a key."""

    def apply(model: Path) -> None:
        content = json.loads((model / name).read_text()) | changes
        (model / name).write_text(
            json.dumps({key: content[key] for key in content if key not in changes or changes[key] is not None})
        )

    return apply


def edit_model(change: Callable[[dict[str, Any]], object]) -> Edit:
    """Change the model (vocabulary and merges) of tokenizer.json."""

    def apply(model: Path) -> None:
        content = json.loads((model / "tokenizer.json").read_text())
        change(content["model"])
        (model / "tokenizer.json").write_text(json.dumps(content))

    return apply


def join_merges(model: dict[str, Any]) -> None:
    """As tokenizers before 0.20 wrote them."""
    model["merges"] = [" ".join(merge) for merge in model["merges"]]


def save_as_transformers_4(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config |= {"torch_dtype": config.pop("dtype"), "rope_scaling": None, "transformers_version": "4.50.0"}
    (model / "config.json").write_text(json.dumps(config))
    tokenizer = {
        "added_tokens_decoder": {
            "0": {
                "content": END,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
        },
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "pad_token": END,
        "extra_special_tokens": {},
        "model_max_length": 256,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (model / "special_tokens_map.json").write_text(json.dumps({"eos_token": END, "pad_token": END}))


TRUNCATION = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 8},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": END,
}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit("tokenizer_config.json", padding_side="left"), "tokenizer_config.json 'padding_side'"),
        (edit("tokenizer_config.json", model_max_length=77), "tokenizer_config.json 'model_max_length'"),
        (edit("tokenizer.json", truncation=TRUNCATION), "tokenizer.json 'truncation'"),
        (edit("tokenizer.json", padding=PADDING), "tokenizer.json 'padding'"),
        (edit_model(join_merges), "tokenizer.json 'model'"),
        (
            lambda model: (model / "special_tokens_map.json").write_text(json.dumps({"eos_token": END})),
            "special_tokens_map.json only in",
        ),
        (save_as_transformers_4, "config.json 'rope_theta'"),
        (edit("config.json", dtype=None, torch_dtype="float32"), "config.json 'torch_dtype'"),
        (edit("config.json", use_cache=False), "config.json 'use_cache'"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_what_changes_no_token_and_no_number_is_no_difference(
    pair: tuple[Path, Path], tmp_path: Path, change: Edit, said: str, which: int
) -> None:
    change(pair[which])
    summary = merge_models(*pair, 0.5, tmp_path / "out")
    assert any(said in difference for difference in summary["change_nothing"]), summary["change_nothing"]
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == (pair[1] / "tokenizer_config.json").read_bytes()


def rename_a_token(model: dict[str, Any]) -> None:
    vocabulary = model["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    number = vocabulary.pop(last)
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) != last]
    vocabulary["unheard"] = number


def swap_merges(model: dict[str, Any]) -> None:
    model["merges"][0], model["merges"][1] = model["merges"][1], model["merges"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edit_model(rename_a_token), r"tokenizer: the vocabulary differs in 2 tokens, for instance "),
        (edit_model(swap_merges), r"tokenizer: the merges differ, first at number 0"),
        (edit("tokenizer_config.json", eos_token="!"), r"tokenizer: eos_token is '<\|endoftext\|>' \(id 0\) in .*'!' \(id "),
        (edit("tokenizer_config.json", pad_token=None), r"tokenizer: pad_token is .* none in"),
        (edit("tokenizer_config.json", chat_template=TEMPLATE), r"tokenizer: the chat template differs"),
        (lambda model: (model / "chat_template.jinja").write_text(TEMPLATE), r"tokenizer: the chat template differs"),
        (edit("tokenizer_config.json", clean_up_tokenization_spaces=True), r"'clean_up_tokenization_spaces' differs"),
        (edit("tokenizer.json", normalizer={"type": "Lowercase"}), r"tokenizer: 'normalizer' differs"),
        (edit("config.json", rms_norm_eps=1e-5), r"config: 'rms_norm_eps' differs: 1e-06 .* 1e-05"),
        (edit("config.json", rope_parameters=None, rope_theta=5000.0), r"config: 'rope_parameters' differs"),
        (edit("config.json", eos_token_id=1), r"config: 'eos_token_id' differs"),
        (edit("config.json", mine=3), r"config: 'mine' differs"),
        (edit("config.json", model_type="nobody's"), r"config: 'model_type' differs.*\n.*compared as it is stored"),
        (lambda model: (model / "tokenizer.json").write_text("{}"), r"compared as they are stored"),
    ],
)  # fmt: skip
def test_what_changes_tokens_or_numbers_is_refused(pair: tuple[Path, Path], change: Edit, reason: str) -> None:
    change(pair[1])
    with pytest.raises(ArtifactError, match=rf"(?s)cannot be merged; .*{reason}"):
        check_compatible(*pair, "be merged")


def test_one_chat_template_in_two_places_is_no_difference(pair: tuple[Path, Path]) -> None:
    edit("tokenizer_config.json", chat_template=TEMPLATE)(pair[0])
    (pair[1] / "chat_template.jinja").write_text(TEMPLATE + "\n")
    assert any("chat_template" in text for text in check_compatible(*pair, "be merged").change_nothing)


def test_equal_files_are_not_loaded(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, AutoTokenizer

    monkeypatch.setattr(AutoConfig, "from_pretrained", None)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)
    assert check_compatible(*pair, "be merged").change_nothing == []


def store_head(model: Path, scale: float = 1.0) -> None:
    weights = load_file(model / WEIGHTS)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * scale
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("which", [0, 1])
def test_a_tied_head_that_is_stored_too_is_merged_as_in_the_first(original: Path, tmp_path: Path, which: int) -> None:
    first, second = shutil.copytree(original, tmp_path / "one"), write_tiny_llama(tmp_path / "two", seed=2)
    store_head((first, second)[which])
    summary = average_models([(first, 0.25), (second, 0.75)], tmp_path / "out")
    merged = load_file(tmp_path / "out" / WEIGHTS)
    assert merged.keys() == load_file(first / WEIGHTS).keys()
    left, right = (load_file(model / WEIGHTS)["model.embed_tokens.weight"] for model in (first, second))
    for name in merged.keys() & {"lm_head.weight", "model.embed_tokens.weight"}:
        torch.testing.assert_close(merged[name], 0.25 * left + 0.75 * right)
    assert ("lm_head.weight" in merged) == (which == 0)
    assert any("lm_head.weight only in" in text for text in summary["change_nothing"])


@pytest.mark.parametrize("both", [False, True])
def test_a_tied_head_with_other_values_is_refused(pair: tuple[Path, Path], both: bool) -> None:
    store_head(pair[0], scale=2.0)
    if both:
        store_head(pair[1])
    with pytest.raises(ArtifactError, match=r"lm_head.weight: .*ties it to model.embed_tokens.weight.* values differ"):
        check_compatible(*pair, "be merged")


def test_an_untied_head_in_one_alone_is_a_difference(pair: tuple[Path, Path]) -> None:
    for model in pair:
        edit("config.json", tie_word_embeddings=False)(model)
    store_head(pair[0])
    with pytest.raises(ArtifactError, match=r"lm_head.weight: only in"):
        check_compatible(*pair, "be merged")
