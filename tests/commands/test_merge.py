from pathlib import Path

import pytest

from cpo_ray.commands.options import spread_numbers
from cpo_ray.inference.weight_files import WEIGHTS
from tests.commands.command_line import invoke
from tests.serving.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return write_tiny_llama(root / "mle", seed=1), write_tiny_llama(root / "cpo", seed=2)


def test_one_model_per_alpha_and_a_rerun_reuses_them(models: tuple[Path, Path], tmp_path: Path) -> None:
    words = ("merge", "--mle", models[0], "--cpo", models[1], "--alpha", 0, 0.3, 1, "--out", tmp_path / "out")
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["merged-0.00", "merged-0.30", "merged-1.00"]
    for alpha, model in (("1.00", models[0]), ("0.00", models[1])):
        assert (tmp_path / "out" / f"merged-{alpha}" / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()
    assert invoke(*words).stdout.count("reused") == 3


def test_files_that_a_merge_does_not_read_do_not_make_it_stale(tmp_path: Path) -> None:
    models = write_tiny_llama(tmp_path / "mle", seed=1), write_tiny_llama(tmp_path / "cpo", seed=2)
    words = ("merge", "--mle", models[0], "--cpo", models[1], "--alpha", 0.5, "--out", tmp_path / "out")
    assert invoke(*words).stdout.count("made") == 1
    for model in models:
        (model / "README.md").write_text("stage `report` has written its card")
        (model / "optimizer.pt").write_bytes(b"not the model's")
    assert invoke(*words).stdout.count("reused") == 1
    write_tiny_llama(models[0], seed=3)
    assert invoke(*words).exit_code == 1


def test_models_with_weights_go_into_the_directory_itself(models: tuple[Path, Path], tmp_path: Path) -> None:
    result = invoke("merge", "--model", f"{models[0]}=0.25", "--model", f"{models[1]}=0.75", "--out", tmp_path / "soup")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "soup" / WEIGHTS).is_file()


def test_a_dtype_can_be_chosen_and_harmless_differences_are_listed(tmp_path: Path) -> None:
    models = write_tiny_llama(tmp_path / "mle", seed=1), write_tiny_llama(tmp_path / "cpo", seed=2)
    (models[0] / "special_tokens_map.json").write_text("{}")
    words = ("merge", "--mle", models[0], "--cpo", models[1], "--alpha", 0.5, "--out", tmp_path / "out")
    chosen = invoke(*words, "--dtype", "bfloat16")
    assert chosen.exit_code == 0, chosen.output
    line = "differences that change nothing: special_tokens_map.json only in"
    assert line in " ".join(chosen.stdout.split())
    assert line in " ".join(invoke(*words, "--dtype", "bfloat16").stdout.split()), "also when reused"
    assert invoke(*words).exit_code == 1, "another dtype is another merge"
    assert invoke(*words, "--dtype", "int8").exit_code == 2


def test_an_existing_directory_is_never_replaced(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "merged-0.50").mkdir()
    (tmp_path / "merged-0.50" / "mine.txt").write_text("keep")
    words = ("merge", "--mle", models[0], "--cpo", models[1], "--alpha", 0.5, "--out", tmp_path)
    result = invoke(*words)
    assert result.exit_code == 1
    assert "exists and is not this merge" in result.stderr
    assert (tmp_path / "merged-0.50" / "mine.txt").read_text() == "keep"
    for model, other in (models, models[::-1]):
        weights = ("--model", f"{model}=0.5", "--model", f"{other}=0.5")
        assert invoke("merge", *weights, "--out", model).exit_code == 1
        assert (model / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --mle DIR, --cpo DIR and --alpha"),
        (("--mle", "a", "--cpo", "b"), "give --mle DIR"),
        (("--mle", "a", "--cpo", "b", "--alpha", "0.1", "--model", "c=1"), "give --mle DIR"),
        (("--mle", "a", "--cpo", "b", "--alpha", "0.1", "1.5"), "less than or equal to 1"),
        (("--mle", "a", "--cpo", "b", "--alpha", "-1"), "greater than or equal to 0"),
        (("--mle", "a", "--cpo", "b", "--alpha", "nan"), "--alpha nan"),
        (("--mle", "a", "--cpo", "b", "--alpha", "0.3", "0.30"), "name one model twice"),
        (("--mle", "a", "--cpo", "b", "--alpha", "0.125"), "first two decimals"),
        (("--model", "a=half"), "expected DIR=WEIGHT"),
    ],
)
def test_invalid_arguments_exit_with_two(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = invoke("merge", *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    result = invoke("merge", "--mle", "nowhere", "--cpo", "b", "--alpha", "0.5", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "nowhere is not a model directory" in result.stderr or "b is not a model directory" in result.stderr


def test_numbers_follow_an_option() -> None:
    spread = lambda text: " ".join(spread_numbers(text.split(), {"--alpha"}))  # noqa: E731
    assert spread("--alpha 0.1 0.3 -0.5 --out 7") == "--alpha 0.1 --alpha 0.3 --alpha -0.5 --out 7"
    assert spread("models/a 5 --alpha 0.1 models/b 6") == "models/a 5 --alpha 0.1 models/b 6"
    assert spread("--alpha 1 --alpha 2 3") == "--alpha 1 --alpha 2 --alpha 3"
    assert spread("--out --alpha") == "--out --alpha"
