"""SIGTERM, Ctrl-C and SIGUSR1 end a run at the next step, with a checkpoint.

The process ends with 128 + the signal's number then (SIGTERM 143, SIGINT 130, SIGUSR1 138), which tells a batch script
that the run is whole and not finished: the time to requeue it.  How the signal comes to the ranks:

- ``srun`` hands on what ``scancel`` and ``#SBATCH --signal=USR1@120`` send, to every rank, and returns the ranks' code.
- ``torchrun`` hands on SIGTERM and SIGINT, SIGUSR1 only with ``--signals-to-handle SIGTERM,SIGINT,SIGUSR1``: without it
  SIGUSR1 kills torchrun itself.  After 30 s, or ``--shutdown-timeout``, it kills.  Its own code is 1 in any case.
- ``deepspeed`` on one machine hands on nothing: what must get the signal is the process below it,
  ``deepspeed.launcher.launch``.  That tells one rank after the other, SIGTERM whatever came, kills each after 30 s and
  ends with 1.
- A terminal's Ctrl-C reaches the launcher and the ranks at once, and most launchers then send it once more.

It is enough that one rank hears of it: the ranks agree, at the end of each step and before each batch of a validation.
A signal that comes while the model is built ends the run after the first step.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ECHO_S = 2.0
"""A Ctrl-C so soon after another is the launcher's copy of it."""


class Interrupted(Exception):  # noqa: N818 - like KeyboardInterrupt, no error
    """The run was asked to stop and has left a checkpoint; `signum` is the signal's number."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum = signum
        self.step = step
        super().__init__(f"Stopped at step {step} with a checkpoint. Continue with --resume auto.")


@dataclass
class StopRequest:
    """Which signal has come first, 0 while none has."""

    signum: int = 0
    since: float = field(default=0.0, repr=False)
    """When it came, by the monotonic clock."""

    @property
    def raised(self) -> bool:
        """Whether this rank has been told to stop; other ranks may not have been: see `agreed`."""
        return self.signum != 0

    def agreed(self, device: "torch.device") -> int:
        """Return the signal that any rank has received: all ranks stop at the same step or none does.

        Every rank calls it equally often.  It is one all-reduce of a number, cheap enough for every batch.
        """
        import torch  # noqa: PLC0415 - who starts the ranks hears signals too, and needs no torch
        import torch.distributed  # noqa: PLC0415

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
        now = time.monotonic()
        if signum == signal.SIGINT and request.signum == signal.SIGINT and now - request.since > ECHO_S:
            raise KeyboardInterrupt
        if not request.raised:  # the first says what the caller meant; launchers follow it with others
            request.signum, request.since = signum, now

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
