"""Runs that are told to stop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.run import pretrain
from cxrdist.train.checkpoints import checkpoint_name
from cxrdist.train.interrupt import Interrupted
from cxrdist.train.metrics import MetricsLog
from cxrdist.train.pieces import Reader
from cxrdist.world import World


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


def check_resumed_to_the_bit(config: PretrainConfig, folder: Path) -> Path:
    """Pretrain at one go, and again with a stop at step 2: all that is kept must be the same; return the first run."""
    whole, parts = folder / "whole", folder / "parts"
    pretrain(config, whole, world=World())
    with stopped_at(2):
        pretrain(config, parts, world=World())
    pretrain(config, parts, world=World(), resume="auto")
    one, two = (Reader(run / "checkpoints" / checkpoint_name(config.train.steps)) for run in (whole, parts))
    for kind in ("weight", "buffer", "exp_avg", "exp_avg_sq"):
        assert one.names(kind) == two.names(kind)
        assert one.names(kind) or kind == "buffer"
        for name in one.names(kind):
            assert torch.equal(one.full(name, kind), two.full(name, kind)), (kind, name)
    models = [(run / "model/model.safetensors").read_bytes() for run in (whole, parts)]
    assert models[0] == models[1]
    return whole
