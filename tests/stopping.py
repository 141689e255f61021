"""Runs that are told to stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cxrdist.train.interrupt import Interrupted
from cxrdist.train.metrics import MetricsLog


@contextmanager
def stopped_at(step: int, signum: int = signal.SIGTERM) -> Iterator[None]:
    """Send this process a signal once `step` is in the log of a run; expect the run to stop there, saved."""
    write = MetricsLog.write

    def write_and_signal(self, at, kind, values):
        write(self, at, kind, values)
        if at == step and kind == "train":
            os.kill(os.getpid(), signum)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MetricsLog, "write", write_and_signal)
        with pytest.raises(Interrupted, match=f"Stopped at step {step} with a checkpoint. Continue with --resume auto"):
            yield
