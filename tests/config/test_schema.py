import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from cpo_ray.config import (
    EngineConfig,
    NegativeCounts,
    RunConfig,
    TrainingConfig,
    stage_inputs,
)
from cpo_ray.config.loading import load_config, parse_config
from cpo_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
WIKI = {"source": "wikidump", "path": "x.bz2", "tokenizer": {"path": "t"}, "passages": {"tokens": 64}}


def parse(**tree):
    return parse_config({"name": "x", **tree}, "x.yaml")


def test_a_name_is_enough():
    config = parse()
    assert config.candidates == 12
    assert config.objective.beta == 5.0
    assert config.training.prompts_per_step == 64


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        parse(training={"step": 3})
    assert str(caught.value) == "x.yaml:\n  unknown key `training.step`; did you mean `training.steps`?"


def test_an_unknown_section_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown key `trainig`; did you mean `training`"):
        parse(trainig={})


def test_an_unknown_key_of_a_decoding_names_the_nearest():
    with pytest.raises(ConfigError, match=r"`generation\.decodings\.mine\.topk`; did you mean .*`?generation.*top_k"):
        parse(generation={"decodings": {"mine": {"topk": 4}}})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"objective": {"beta": 0}}, ["objective.beta", "greater than 0", "got 0"]),
        ({"objective": {"beta": -1.5}}, ["objective.beta", "greater than 0", "got -1.5"]),
        ({"objective": {"beta": float("nan")}}, ["objective.beta", "got nan"]),
        ({"merging": {"alphas": [0.5, 1.2]}}, ["merging.alphas.1", "less than or equal to 1", "got 1.2"]),
        ({"merging": {"alphas": [0.3, 0.30]}}, ["alphas [0.3, 0.3]", "name one model twice", "merged-0.30"]),
        ({"merging": {"alphas": [0.5, 0.125]}}, ["alphas [0.125]", "first two decimals (merged-0.12)"]),
        ({"training": {"steps": 0}}, ["training.steps", "greater than or equal to 1", "got 0"]),
        ({"training": {"zero_stage": 4}}, ["training.zero_stage", "less than or equal to 3", "got 4"]),
        ({"training": {"precision": "fp8"}}, ["training.precision", "'fp32' or 'bf16'", "got 'fp8'"]),
        ({"model": {"hidden_size": 100, "heads": 3}}, ["100", "3", "100 = 3 x 33 + 1"]),
        ({"model": {"context": 64}}, ["192 + data.max_response_tokens 64 = 256 exceeds model.context 64"]),
        ({"data": {"source": "dolly"}}, ["data", "needs data.path"]),
        ({"data": {"template": "{context}"}}, ["{instruction}"]),
        ({"data": {"source": "wikidump"}}, ["needs data.path", "enwiki.xml.bz2"]),
        ({"data": WIKI | {"tokenizer": {}}}, ["cuts articles by tokens", "set data.tokenizer.path"]),
        ({"data": WIKI | {"max_prompt_tokens": 8}}, ["0.15 of passages.tokens 64 gives prompts of 9 tokens"]),
        ({"data": WIKI | {"max_response_tokens": 54}}, ["64 - prompt 9 = 55", "max_response_tokens 54"]),
        ({"data": {"passages": {"tokens": 64, "min_tokens": 65}}}, ["min_tokens 65 exceeds tokens 64"]),
        ({"data": {"passages": {"prompt_share": 0.1, "min_tokens": 9}}}, ["gives 0 prompt and 9 continuation tokens"]),
        ({"data": {"passages": {"prompt_share": 0.9, "min_tokens": 10}}}, ["gives 9 prompt and 1 continuation tokens"]),
        ({"sampling": {"batch_rows": 3, "shard_rows": 9}}, ["sampling.negatives.batch 3", "batch_rows is 3"]),
        ({"sampling": {"shard_rows": 100}}, ["sampling.shard_rows 100", "multiple", "64"]),
        ({"generation": {"decodings": {}}}, ["generation", "decodings", "at least one"]),
        ({"generation": {"decodings": {"top/k": {}}}}, ["generation", "decodings: 'top/k' must be a file name"]),
        ({"generation": {"decodings": {"greedy": {}, "../x": {}}}}, ["decodings: '../x' must be a file name"]),
        ({"generation": {"decodings": {"alpha": {}}}}, ["the report has another figure named 'alpha'"]),
        (
            {"judge": {"url": "http://localhost:80a/v1"}},
            ["judge", "url 'http://localhost:80a/v1' is not a URL", "'80a'"],
        ),
        ({"judge": {"url": "http:///v1"}}, ["judge", "url 'http:///v1': expected http:// or https:// and a host"]),
        ({"judge": {"url": "http://host:99999/v1"}}, ["judge", "port 99999 is above 65535"]),
        ({"judge": {"url": "http://me:secret@host/v1"}}, ["judge", "a URL with a user or a password"]),
        ({"sampling": {"unhelpful": {"url": "host/v1"}}}, ["sampling.unhelpful", "expected http:// or https://"]),
        ({"name": "Two Words"}, ["name", "pattern", "'Two Words'"]),
    ],
)
def test_values_out_of_bounds_name_field_bound_and_value(tree, words):
    with pytest.raises(ConfigError) as caught:
        parse(**tree)
    for word in words:
        assert word in str(caught.value)


def test_a_password_in_a_url_is_not_repeated():
    with pytest.raises(ConfigError) as caught:
        parse(judge={"url": "http://me:secret@host/v1"})
    assert "secret" not in str(caught.value)


def test_k_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"sampling\.negatives: K = 1"):
        parse(sampling={"negatives": {"batch": 0, "meanfield": 0, "truncation": 0}})


def test_an_unknown_kind_of_negative_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"unknown kind of negative `negatives.bach`; did you mean `negatives.batch`\?"
    ):
        parse(sampling={"negatives": {"bach": 3}})
    with pytest.raises(ConfigError, match=r"did you mean `negatives.shuffled`\?"):
        parse(sampling={"negatives": {"shufled": 3}, "kinds": {"shuffled": "mine.kinds:shuffled"}})


def test_a_custom_kind_counts_and_is_an_input_of_the_groups():
    tree = {"negatives": {"batch": 1, "shuffled": 2}, "kinds": {"shuffled": "mine.kinds:shuffled"}}
    config = parse(sampling=tree)
    assert config.sampling.negatives.by_kind == {"batch": 1, "meanfield": 5, "truncation": 3, "shuffled": 2}
    assert config.candidates == 12
    assert stage_inputs(config)["sampling"]["negatives"]["shuffled"] == 2
    assert stage_inputs(config)["sampling"]["kinds"] == {"shuffled": "mine.kinds:shuffled"}
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), "again") == config


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"kinds": {"batch": "mine:draw"}}, "'batch' is already a kind"),
        ({"kinds": {"gold": "mine:draw"}}, "'gold' is already a kind"),
        ({"kinds": {"mine": "mine.draw"}}, "sampling.kinds.mine: a kind is `module:function`, or parameters"),
        ({"kinds": {"Mine": "mine:draw"}}, "should match pattern"),
        (
            {"kinds": {"mine": "mine:draw"}, "negatives": {"mine": -1}},
            "sampling.negatives.mine: Input should be greater",
        ),
        ({"negatives": {"unhelpful": 1}}, "negatives.unhelpful 1 needs unhelpful.url and unhelpful.model"),
        ({"unhelpful": {"max_price": 5}}, "max_price 5 needs input_price and output_price"),
        ({"unhelpful": {"max_requets": 5}}, "did you mean `sampling.unhelpful.max_requests`"),
        ({"unhelpful": {"api_key": "x"}}, "name its environment variable"),
        ({"redraws": -1}, "sampling.redraws: Input should be greater than or equal to 0, got -1"),
    ],
)
def test_errors_in_the_negatives_name_the_key(tree, words):
    with pytest.raises(ConfigError) as caught:
        parse(sampling=tree)
    assert words in str(caught.value)


def test_limits_of_an_api_make_no_group_stale():
    asked = {"unhelpful": {"url": "https://api.example/v1", "model": "some-llm"}}
    dearer = {
        "unhelpful": asked["unhelpful"] | {"max_requests": 9, "max_price": 1, "input_price": 1, "output_price": 2}
    }
    assert stage_inputs(parse(sampling=asked)) == stage_inputs(parse(sampling=dearer))


def test_a_batch_that_does_not_divide_shows_the_arithmetic():
    with pytest.raises(ConfigError) as caught:
        parse(training={"prompts_per_step": 50, "workers": 2, "prompts_per_microbatch": 16})
    assert "50" in str(caught.value)
    assert "32" in str(caught.value) or "2 x 16" in str(caught.value)


def test_all_errors_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(objective={"beta": 0}, training={"steps": 0})
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_name_is_reported():
    with pytest.raises(ConfigError, match="name: this key is required"):
        parse_config({}, "x.yaml")


@pytest.mark.parametrize(
    "tree",
    [
        {"judge": {"api_key": "abc"}},
        {"serving": {"token": "abc"}},
        {"judge": {"model": "sk-abcdefghijklmnop"}},
        {"judge": {"url": ["hf_abcdefghijklmnop"]}},
        {"judge": {"url": "https://api.example/v1/sk-abcdefghijklmnop"}},
        {"judge": {"url": "https://someone:abcdefgh@judge.example/v1"}},
        {"judge": {"url": "https://judge.example/v1?model=m&api_key=abcdefgh"}},
        {"judge": {"key_variable": "gsk_abcdefghijklmnop"}},
        {"judge": {"key_variable": "abcdefgh"}},
        {"sampling": {"unhelpful": {"key_variable": "ABCD-abcdefgh"}}},
        {"tracking": {"mlflow_uri": "https://abcdefgh@tracking.example/"}},
        {"cluster": {"checkpoint_storage": "s3://KEY:abcdefgh@bucket/runs"}},
        {"data": {"path": ["https://data.example/rows.jsonl?x-secret=abcdefgh"]}},
    ],
)
def test_secrets_are_refused_and_not_repeated(tree):
    with pytest.raises(ConfigError, match="environment variable") as caught:
        parse(**tree)
    assert "abcdefgh" not in str(caught.value)


def test_values_that_only_look_like_secrets_are_accepted():
    parse(judge={"url": "https://judge.example/v1?version=2024-02-01", "model": "task-abcdefghijklmnop"})
    parse(data={"source": "instructions", "path": "/mnt/data/hf_some_rows_of_mine@2.jsonl"})
    parse(cluster={"checkpoint_storage": "s3://bucket/runs@home"}, judge={"key_variable": "MY_KEY_2"})


def test_a_missing_file_is_reported_with_a_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file .*nowhere\.yaml.*cpo-ray configs"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "", "\tname: x"])
def test_a_file_without_keys_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(path)


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(path)


def test_overrides_are_yaml_values(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ntraining: {steps: 5}\n")
    config = load_config(path, ("training.steps=7", "merging.alphas=[0.5]", "data.path=null", "objective.ranked=false"))
    assert config.training.steps == 7
    assert config.merging.alphas == (0.5,)
    assert config.data.path is None
    assert config.objective.ranked is False


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.steps", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("name.first=3", "name is a value, not a section"),
        ("training.steps=[1", "--set training.steps"),
        ("training.stepz=3", "did you mean `training.steps`"),
    ],
)
def test_bad_overrides_are_refused(tmp_path, override, words):
    path = tmp_path / "x.yaml"
    path.write_text("name: x\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, (override,))
    assert words in str(caught.value)


def test_a_config_round_trips_through_json():
    config = parse(generation={"decodings": {"greedy": {}, "nucleus": {"temperature": 1, "top_p": 0.9}}})
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), "again") == config


def test_a_config_is_frozen():
    with pytest.raises(ValidationError):
        parse().seed = 3


def test_execution_keys_are_not_stage_inputs():
    assert stage_inputs(TrainingConfig(checkpoint_every=7)) == stage_inputs(TrainingConfig(checkpoint_every=9))
    assert stage_inputs(TrainingConfig(steps=7)) != stage_inputs(TrainingConfig(steps=9))
    assert stage_inputs(EngineConfig()) == {}
    assert "cluster" not in stage_inputs(parse())
    assert stage_inputs(parse())["sampling"]["engine"] == {}


def test_k_counts_the_gold():
    assert (
        parse(sampling={"negatives": {"autoregressive": 11, "batch": 0, "meanfield": 0, "truncation": 0}}).candidates
        == 12
    )
    assert NegativeCounts(autoregressive=1, batch=1, meanfield=1, truncation=1).total == 4


def test_merged_models_are_named_by_their_alpha():
    assert RunConfig(name="x").merging.model_name(0.5) == "merged-0.50"


def test_the_shell_sees_exit_code_two_and_no_traceback(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("name: x\nobjectiv: {beta: 5}\n")
    command = [sys.executable, "-m", "cpo_ray.cli", "validate", str(path)]
    code = f"import sys; sys.argv = {['cpo-ray', *command[3:]]!r}; from cpo_ray.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 2
    assert "unknown key `objectiv`; did you mean `objective`?" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
