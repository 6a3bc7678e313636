import signal
import sys

import pytest

from cpo_ray.training.trainer import _plain_interrupt


def test_ray_train_s_exit_on_ctrl_c_is_ctrl_c_again():
    before = signal.getsignal(signal.SIGINT)

    def fit():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), _plain_interrupt():
        fit()
    assert signal.getsignal(signal.SIGINT) is before
