import pytest

from cpo_ray.config.loading import parse_config
from cpo_ray.errors import ConfigError
from cpo_ray.stages.data import check_validation_rows
from cpo_ray.stages.sampling import training_rows


def configure(**sections):
    return parse_config({"name": "x", "data": {"path": "rows.jsonl"}, **sections}, "x.yaml")


def test_more_validation_rows_than_a_share_gives_are_refused():
    config = configure(training={"validation_rows": 12})
    check_validation_rows(config, 12)
    with pytest.raises(
        ConfigError, match=r"training\.validation_rows 12 exceeds the 11 .*data\.validation_rows 0\.1\)"
    ):
        check_validation_rows(config, 11)


def test_a_share_of_the_rows_becomes_as_many_groups_as_stage_data_has_counted():
    assert training_rows(configure(), {"train_rows": 80}) == 80
    assert training_rows(configure(sampling={"rows": 30}), {"train_rows": 80}) == 30
    assert training_rows(configure(data={"train_rows": 50}), {}) == 50
