"""SIGTERM, Ctrl-C and SIGUSR1 end a run at the next step, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(Exception):  # noqa: N818 - like KeyboardInterrupt, no error
    """The run was asked to stop and has left a checkpoint; `signum` is the signal's number."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum = signum
        self.step = step
        super().__init__(f"Stopped at step {step} with a checkpoint. Continue with --resume auto.")


@dataclass
class StopRequest:
    """Which signal has come, 0 while none has."""

    signum: int = 0

    def agreed(self, device: torch.device) -> int:
        """Return the signal that any rank has received: all ranks stop at the same step or none does."""
        if torch.distributed.get_world_size() == 1:
            return self.signum
        heard = torch.tensor(self.signum, device=device)
        torch.distributed.all_reduce(heard, op=torch.distributed.ReduceOp.MAX)
        return int(heard.item())


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note the stop signals during the block instead of dying of them; a second Ctrl-C is not held back."""
    request = StopRequest()

    def note(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and request.signum == signal.SIGINT:
            raise KeyboardInterrupt
        request.signum = signum

    if threading.current_thread() is not threading.main_thread():
        # Only a main thread may install handlers; elsewhere (a Ray worker's task thread) the owner stops us.
        yield request
        return
    before = {signum: signal.signal(signum, note) for signum in SIGNALS}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
