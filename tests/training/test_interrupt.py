import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from cpo_ray.config import ClusterConfig, TrainingConfig
from cpo_ray.errors import Preempted
from cpo_ray.training import trainer
from cpo_ray.training.mailbox import Board
from cpo_ray.training.trainer import _plain_interrupt, train_model


def test_ray_train_s_exit_on_ctrl_c_is_ctrl_c_again():
    before = signal.getsignal(signal.SIGINT)

    def fit():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), _plain_interrupt():
        fit()
    assert signal.getsignal(signal.SIGINT) is before


class LocalBoard:
    """The board in this process."""

    def __init__(self):
        self.board = Board.__ray_metadata__.modified_class()

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.board, name))


def end_at_step(step, tmp_path, monkeypatch):
    """A training of five steps, in which SIGTERM comes after the last and `step` is what was then saved, if one was."""
    board, told_to_end = LocalBoard(), threading.Event()

    def fit(*_):
        signal.raise_signal(signal.SIGTERM)
        if step is not None:
            board.saved.remote(step)
        return SimpleNamespace(checkpoint="the last", metrics={})

    here = SimpleNamespace(get_node_id=lambda: "a" * 56)
    monkeypatch.setattr(trainer, "ray", SimpleNamespace(get=lambda answer: answer, get_runtime_context=lambda: here))
    monkeypatch.setattr(trainer, "Board", SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: board)))
    monkeypatch.setattr(trainer, "fit_while_it_gets_on", fit)
    monkeypatch.setattr(trainer, "take_model", lambda kept, out, tell: (out / "model").touch() or True)
    task = SimpleNamespace(stage="cpo", training=TrainingConfig(workers=1, steps=5))
    train_model(task, ClusterConfig(), tmp_path, tmp_path, pytest.fail, pytest.fail, told_to_end)
    return told_to_end.is_set()


@pytest.mark.parametrize("step", [None, 5])
def test_sigterm_after_the_last_step_is_not_forgotten(step, tmp_path, monkeypatch):
    assert end_at_step(step, tmp_path, monkeypatch)
    assert (tmp_path / "model").exists()


def test_sigterm_before_that_ends_at_the_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(Preempted, match="saved at step 4"):
        end_at_step(4, tmp_path, monkeypatch)
    assert not (tmp_path / "model").exists()
