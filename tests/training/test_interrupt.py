import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from cpo_ray.config import ClusterConfig, TrainingConfig
from cpo_ray.errors import Preempted
from cpo_ray.training import trainer
from cpo_ray.training.mailbox import Mailbox
from cpo_ray.training.trainer import _keyboard_interrupt_on_sigint, train_model


def test_ctrl_c_raises_keyboard_interrupt_despite_ray_train_s_handler():
    before = signal.getsignal(signal.SIGINT)

    def fit():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), _keyboard_interrupt_on_sigint():
        fit()
    assert signal.getsignal(signal.SIGINT) is before


class LocalMailbox:
    """The mailbox in this process."""

    def __init__(self):
        self.mailbox = Mailbox.__ray_metadata__.modified_class()

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.mailbox, name))


def sigterm_after(step, tmp_path, monkeypatch):
    """A training of five steps with SIGTERM after the last. `step`: the checkpoint that was saved then, None for none."""
    mailbox, stop_requested = LocalMailbox(), threading.Event()

    def fit(*_):
        signal.raise_signal(signal.SIGTERM)
        if step is not None:
            mailbox.report_requested_save.remote(step)
        return SimpleNamespace(checkpoint="the last", metrics={})

    context = SimpleNamespace(get_node_id=lambda: "a" * 56)
    monkeypatch.setattr(trainer, "ray", SimpleNamespace(get=lambda answer: answer, get_runtime_context=lambda: context))
    monkeypatch.setattr(
        trainer, "Mailbox", SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: mailbox))
    )
    monkeypatch.setattr(trainer, "fit_with_restarts", fit)
    monkeypatch.setattr(trainer, "copy_first_intact_model", lambda stored, out, notify: (out / "model").touch() or {})
    task = SimpleNamespace(stage="cpo", training=TrainingConfig(workers=1, steps=5), adapter=None)
    train_model(task, ClusterConfig(), tmp_path, tmp_path, pytest.fail, pytest.fail, stop_requested)
    return stop_requested.is_set()


@pytest.mark.parametrize("step", [None, 5])
def test_sigterm_after_the_last_step_sets_the_event(step, tmp_path, monkeypatch):
    assert sigterm_after(step, tmp_path, monkeypatch)
    assert (tmp_path / "model").exists()


def test_sigterm_before_the_last_step_raises_preempted(tmp_path, monkeypatch):
    with pytest.raises(Preempted, match="saved at step 4"):
        sigterm_after(4, tmp_path, monkeypatch)
    assert not (tmp_path / "model").exists()
