"""A copy of what a rank saves, in the host's memory, so that training goes on while it is written."""

import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from cxrdist.log import get_logger
from cxrdist.train.pieces import Piece

log = get_logger(__name__)

ALIGNMENT = 64
"""Bytes; each copy begins at a multiple of it."""


class Snapshot:
    """One block of host memory, as large as what is copied, kept for the next copy.

    Pages of it are locked where there is a GPU, so that copying runs at the speed of the bus.  PyTorch's own pinned
    memory would be rounded up to powers of two, piece by piece, and locking anew for each copy takes longer than it.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._unlock: weakref.finalize | None = None

    def take(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Return `pieces` with copies of their tensors; they are valid until the next call.

        When this returns, the originals may be written to.
        """
        starts = []
        size = 0
        for piece in pieces:
            starts.append(size)
            size += -(-piece.tensor.nbytes // ALIGNMENT) * ALIGNMENT
        devices = {piece.tensor.device for piece in pieces if piece.tensor.is_cuda}
        if size > self._block.nbytes:
            self.release()
            self._block = torch.empty(size, dtype=torch.uint8)
            if devices:
                self._lock()
        for device in devices:
            torch.cuda.synchronize(device)  # an optimizer may have written on a stream of its own
        copies = []
        for piece, start in zip(pieces, starts, strict=True):
            room = self._block[start : start + piece.tensor.nbytes].view(piece.tensor.dtype)
            room.copy_(piece.tensor.detach(), non_blocking=True)
            copies.append(replace(piece, tensor=room))
        for device in devices:
            torch.cuda.synchronize(device)
        return copies

    def release(self) -> None:
        """Give the memory back."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None
        self._block = torch.empty(0, dtype=torch.uint8)

    def _lock(self) -> None:
        failed = torch.cuda.cudart().cudaHostRegister(self._block.data_ptr(), self._block.nbytes, 0)
        if int(failed) == 0:
            # Also where nobody calls `release`: memory that is freed while its pages are locked stays so.  The block
            # is held until then; at the end of the process the driver gives all back.
            self._unlock = weakref.finalize(self, _unlock, self._block)
            self._unlock.atexit = False
            return
        log.debug("No locked pages for checkpoints (CUDA error %d): copying to them is slower.", int(failed))
        # The runtime keeps the error for whoever asks next, which is PyTorch after its next kernel: let that be here.
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda").add_(1)


def _unlock(block: torch.Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(block.data_ptr())
