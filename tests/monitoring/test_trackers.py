import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from cpo_ray.config import RunConfig
from cpo_ray.errors import ConfigError
from cpo_ray.monitoring.trackers import flatten, track

ROW = {"stage": "cpo", "step": 3, "loss": 1.5, "masked": 2, "negative_logp": {"batch": -7.0}}


def events(folder):
    """(step, tag, value) of a TensorBoard file: records of length, checksum, event, checksum."""
    (file,) = folder.iterdir()
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found


def test_nested_metrics_have_paths_as_names():
    assert flatten(ROW, "training") == {
        "training/loss": 1.5,
        "training/masked": 2.0,
        "training/negative_logp/batch": -7.0,
    }


def test_tensorboard_gets_training_and_validation(tmp_path):
    with track(RunConfig(name="run"), tmp_path, "cpo") as tracker:
        tracker.log(ROW)
        tracker.log({"stage": "cpo", "step": 3, "validation": {"loss": 2.5}})
    assert set(events(tmp_path / "tensorboard" / "cpo")) == {
        (3, "training/loss", 1.5),
        (3, "training/masked", 2.0),
        (3, "training/negative_logp/batch", -7.0),
        (3, "validation/loss", 2.5),
    }


def test_without_trackers_nothing_is_written(tmp_path):
    with track(RunConfig(name="run", tracking={"tensorboard": False}), tmp_path, "cpo") as tracker:
        tracker.log(ROW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tracking", "remedy"),
    [
        ({"wandb_project": "p"}, "tracking.wandb_project is set, but wandb is not installed: pip install wandb"),
        ({"mlflow_uri": "f"}, "tracking.mlflow_uri is set, but mlflow is not installed: pip install mlflow-skinny"),
    ],
)
def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch, tracking, remedy):
    monkeypatch.setitem(__import__("sys").modules, remedy.split()[4], None)
    with pytest.raises(ConfigError, match=remedy), track(RunConfig(name="run", tracking=tracking), tmp_path, "cpo"):
        pass
