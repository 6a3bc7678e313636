"""Several autoregressive kinds in one group, each with parameters of its own."""

import pytest
import yaml

from cpo_ray.config import KindDecoding, RunConfig, stage_inputs
from cpo_ray.config.loading import parse_config
from cpo_ray.config.sampled_kinds import GREEDY
from cpo_ray.errors import ConfigError

NONE = {"batch": 0, "meanfield": 0, "truncation": 0}


def parse(counts, kinds=None, **sampling):
    return parse_config({"name": "x", "sampling": {"negatives": NONE | counts, "kinds": kinds or {}} | sampling}, "x")


def test_kinds_are_sampled_greedy_first_and_unset_parameters_are_those_of_sampling():
    kinds = {"warm": {"top_p": 0.5}, "hot": {"temperature": 1.4, "top_k": 0, "top_p": 1}, "unused": {"temperature": 2}}
    counts = {"greedy": 1, "warm": 2, "hot": 1, "autoregressive": 3, "batch": 1}
    config = parse(counts, kinds, temperature=0.7, top_k=20, top_p=0.9)
    assert list(config.sampling.sampled.items()) == [
        ("greedy", GREEDY),
        ("autoregressive", KindDecoding(0.7, 20, 0.9)),
        ("hot", KindDecoding(1.4, 0, 1.0)),
        ("warm", KindDecoding(0.7, 20, 0.5)),
    ]
    assert (config.sampling.samples, config.candidates) == (7, 9)
    assert config.sampling.functions == {}
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), "again") == config


def test_the_defaults_are_the_papers():
    assert parse({"autoregressive": 1}).sampling.sampled == {"autoregressive": KindDecoding(1.0, 50, 1.0)}
    assert RunConfig(name="x").sampling.sampled == {}


def test_functions_and_parameters_are_both_kinds():
    config = parse({"mine": 1, "hot": 1}, {"mine": "mine.kinds:draw", "hot": {"temperature": 2}})
    assert config.sampling.functions == {"mine": "mine.kinds:draw"}
    assert list(config.sampling.sampled) == ["hot"]


def test_a_kinds_parameters_are_inputs_of_the_stage():
    def inputs(**parameters):
        return stage_inputs(parse({"hot": 1}, {"hot": parameters}))["sampling"]

    assert inputs(temperature=1.4) == inputs(temperature=1.4, top_k=None)
    assert inputs(temperature=1.4) != inputs(temperature=1.5)


@pytest.mark.parametrize(
    ("decoding", "words"),
    [
        (GREEDY, "temperature 0"),
        (KindDecoding(1.4, 0, 1.0), "temperature 1.4"),
        (KindDecoding(1.0, 50, 0.9), "temperature 1, top-k 50, top-p 0.9"),
    ],
)
def test_a_decoding_in_words(decoding, words):
    assert str(decoding) == words


@pytest.mark.parametrize(
    ("counts", "kinds", "sampling", "words"),
    [
        ({"greedy": 3}, {}, {}, ["negatives.greedy 3:", "one answer per prompt", "alike", "kinds: {hot: {temperature"]),
        ({"cold": 2}, {"cold": {"temperature": 0}}, {}, ["negatives.cold 2: greedy decoding"]),
        ({"greedy": 1, "cold": 1}, {"cold": {"temperature": 0}}, {}, ["negatives.cold 1", "negatives.greedy 1"]),
        ({"autoregressive": 2}, {}, {"top_k": 1}, ["negatives.autoregressive 2: greedy decoding"]),
        ({}, {"hot": {"temperatur": 1.4}}, {}, ["`sampling.kinds.hot.temperatur`", "`sampling.kinds.hot.temperature`"]),
        ({}, {"hot": {"temperature": -1}}, {}, ["sampling.kinds.hot.temperature: -1 is not"]),
        (
            {},
            {"hot": {"temperature": 0.001}},
            {},
            ["sampling.kinds.hot.temperature: 0.001 is not between 0.01", "`greedy`"],
        ),
        ({}, {"hot": {"temperature": 2.1}}, {}, ["sampling.kinds.hot.temperature: 2.1 is not between"]),
        ({}, {"hot": {"top_p": 0}}, {}, ["sampling.kinds.hot.top_p: ", "got 0"]),
        ({}, {"hot": {"top_p": 1.5, "top_k": -2}}, {}, ["sampling.kinds.hot.top_p", "sampling.kinds.hot.top_k"]),
        ({}, {"hot": 1.4}, {}, ["sampling.kinds.hot: a kind is `module:function`, or parameters", "got 1.4"]),
        ({}, {"greedy": {"temperature": 1}}, {}, ["kinds: 'greedy' is already a kind"]),
        ({"hot": 1}, {}, {}, ["unknown kind of negative `negatives.hot`", "kinds: {hot: {temperature: 1.4}}"]),
        ({}, {}, {"temperature": 0}, ["sampling.temperature: 0 is not between 0.01 and 2", "use the kind `greedy`"]),
        ({}, {}, {"top_p": 0}, ["sampling.top_p: ", "got 0"]),
    ],
)
def test_bad_kinds_are_refused_with_the_key_and_the_remedy(counts, kinds, sampling, words):
    with pytest.raises(ConfigError) as caught:
        parse({"batch": 1} | counts, kinds, **sampling)
    for word in words:
        assert word in str(caught.value)
