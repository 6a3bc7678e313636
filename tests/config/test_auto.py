"""`auto`: what follows from the machine."""

import pytest

from cpo_ray.config import RunConfig
from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ConfigError


def parse(**tree) -> RunConfig:
    return parse_config({"name": "x"} | tree, "x.yaml")


def test_auto_is_read_and_written_as_a_word_and_an_engine_s_share_must_fit_its_cards():
    auto = {"training": {"workers": "auto"}, "cluster": {"gpus": "auto"}, "serving": {"in_place": "auto"}}
    config = parse(**auto)
    assert config == parse()
    assert config.training.workers is None
    written = config.model_dump(mode="json")
    assert (written["training"]["workers"], written["cluster"]["gpus"], written["serving"]["in_place"]) == ("auto",) * 3
    assert parse(sampling={"engines": {"gpus": 0.5}}).sampling.engines.gpus == 0.5
    for cards, share in ((1, 2), (1, 0), (2, 0.5)):
        with pytest.raises(ConfigError, match=rf"engines\.gpus {share:g}: an engine has .* = {cards} whole"):
            parse(sampling={"engines": {"gpus": share}, "engine": {"tensor_parallel": cards}})
    with pytest.raises(ConfigError, match="in_phases cannot be combined with stream"):
        parse(sampling={"in_phases": True, "stream": True})
    with pytest.raises(ConfigError, match="gpus 0 and gpus_per_worker 1 contradict each other"):
        parse(cluster={"gpus": 0, "gpus_per_worker": 1})
