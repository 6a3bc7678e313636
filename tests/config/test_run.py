import pytest

from cpo_ray.config import AdapterConfig, DataConfig, ModelConfig, RunConfig, stage_inputs
from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ConfigError


def parse(**tree):
    return parse_config({"name": "x", **tree}, "x.yaml")


@pytest.mark.parametrize("data", [{}, {"tokenizer": {}}, {"tokenizer": {"path": None}}, {"source": "synthetic"}])
def test_the_tokenizer_is_the_model_s(data):
    config = parse(model={"path": "owner/model"}, data=data)
    assert config.data.tokenizer.path == "owner/model"
    assert stage_inputs(config)["data"]["tokenizer"]["path"] == "owner/model"  # so stage `data` counts it
    assert parse_config(config.model_dump(mode="json"), "config.json") == config


def test_the_tokenizer_is_the_model_s_in_a_configuration_made_in_python():
    config = RunConfig(name="x", model=ModelConfig(path="owner/model"), data=DataConfig(train_rows=5))
    assert (config.data.tokenizer.path, config.data.train_rows) == ("owner/model", 5)
    assert RunConfig(name="x", model=ModelConfig(path="owner/model")).data.tokenizer.path == "owner/model"


def test_a_tokenizer_of_its_own_is_kept_and_none_is_trained_without_a_model():
    assert parse(model={"path": "owner/model"}, data={"tokenizer": {"path": "t"}}).data.tokenizer.path == "t"
    assert parse().data.tokenizer.path is None


def test_articles_are_cut_with_the_tokenizer_of_the_model():
    data = {"source": "text", "path": "x.txt", "passages": {"tokens": 64}}
    assert parse(model={"path": "owner/model"}, data=data).data.tokenizer.path == "owner/model"


@pytest.mark.parametrize(
    "tree", [{"model": {"path": "m"}, "data": 3}, {"model": {"path": "m"}, "data": {"tokenizer": 3}}]
)
def test_sections_that_are_none_are_reported_as_before(tree):
    with pytest.raises(ConfigError, match=r"data.*got 3"):
        parse(**tree)


def test_the_arithmetic_of_the_context():
    config = parse()
    assert config.context_excess(256) is None
    assert config.context_excess(255) == "data.max_prompt_tokens 192 + data.max_response_tokens 64 = 256"


@pytest.mark.parametrize("section", ["reference", "training"])
def test_a_model_from_scratch_has_no_routers_to_balance(section):
    with pytest.raises(
        ConfigError, match=rf"{section}\.router_auxiliary_loss: model\.architecture llama has no routers"
    ):
        parse(**{section: {"router_auxiliary_loss": 0.01}})


def test_an_adapter_in_4_bits_needs_a_frozen_base_that_is_not_cut_apart():
    adapter, model = {"quantize": "nf4"}, {"path": "owner/model"}
    assert parse(adapter={}).adapter == AdapterConfig()
    assert parse().adapter is None
    assert parse(adapter=adapter, model=model).adapter.quantize == "nf4"
    with pytest.raises(ConfigError, match=r"adapter\.export adapter cannot be combined with rounds 2"):
        parse(adapter={"export": "adapter"}, rounds=2, training={"validation_rows": 8}, data={"validation_rows": 8})
    with pytest.raises(ConfigError, match=r"adapter\.quantize nf4 needs model\.path"):
        parse(adapter=adapter)
    with pytest.raises(
        ConfigError, match=r"cannot be combined with training\.zero_stage 3.*use training\.zero_stage 2"
    ):
        parse(adapter=adapter, model=model, training={"zero_stage": 3})


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"targets": []}, "nothing would be trained"),
        ({"targets": ["q_proj", "q_proj"]}, "name one layer twice"),
        ({"rank": 0}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"quantize": "int8"}, "quantize"),
    ],
)
def test_bad_values_of_an_adapter_are_refused(adapter, message):
    with pytest.raises(ConfigError, match=message):
        parse(adapter=adapter)
