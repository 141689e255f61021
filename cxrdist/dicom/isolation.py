"""A process that decodes for this one: libraries written in C end their process, or never return, on some damaged data.

It is started with the first compressed image, serves one after the other, and ends with this process.
"""

import atexit
import io
import os
import pickle
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np

import cxrdist
from cxrdist.dicom.codecs import READY, Encoded
from cxrdist.errors import ImageRejectedError, UserError

MOST_SECONDS = 120.0
"""A radiograph takes a second, one of 100 million pixels ten."""


def decode_apart(encoded: Encoded) -> tuple[np.ndarray, str]:
    """Return what `decode_pixels` returns.

    Raises:
        ImageRejectedError: `unreadable` if the decoder fails, ends or does not end.
        UserError: If there cannot be such a process.
    """
    with _LOCK:
        global _DECODER  # noqa: PLW0603 - one process serves all images
        if _DECODER is None or not _DECODER.usable:
            _DECODER = _Decoder()
        return _DECODER.decode(encoded)


class _Decoder:
    """The process."""

    def __init__(self) -> None:
        root = str(Path(cxrdist.__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._owner = os.getpid()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cxrdist.dicom.codecs"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the parent; this one ends with its input
            )
            self._requests = cast(io.BufferedWriter, self._process.stdin)
            self._answers = cast(io.BufferedReader, self._process.stdout)
            atexit.register(self.close)
            if pickle.load(self._answers) != READY:
                raise EOFError
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(
                f"A process that decodes compressed images must start, got {type(error).__name__} [{sys.executable}]. "
                f"Is there memory, and may this one start others?"
            ) from None

    @property
    def usable(self) -> bool:
        """Whether the process lives and is ours; a fork of its owner must not talk to it."""
        return self._owner == os.getpid() and self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        if self._owner != os.getpid():
            return
        atexit.unregister(self.close)
        self._process.kill()
        self._process.wait()
        for stream in (self._requests, self._answers):
            with suppress(OSError):  # what could not be sent any more
                stream.close()

    def decode(self, encoded: Encoded) -> tuple[np.ndarray, str]:
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        alarm = threading.Timer(MOST_SECONDS, stop)
        alarm.daemon = True
        alarm.start()
        try:
            answer = self._ask(encoded)
        except (OSError, EOFError, pickle.UnpicklingError):
            self.close()
            answer = None
        except BaseException:  # Ctrl-C in the middle of an answer, whose rest must not be the next one's
            self.close()
            raise
        finally:
            alarm.cancel()
        if late.is_set():
            raise ImageRejectedError("unreadable", f"decoding the pixel data takes more than {MOST_SECONDS:.0f} s")
        if answer is None:
            raise ImageRejectedError("unreadable", "the compressed pixel data is damaged or truncated")
        return answer

    def _ask(self, encoded: Encoded) -> tuple[np.ndarray, str] | None:
        pickle.dump(encoded, self._requests)
        self._requests.flush()
        told = pickle.load(self._answers)
        if told is None:
            return None
        photometric, dtype, shape = told
        values = np.empty(shape, dtype)
        room = values.data.cast("B")
        while room:
            count = self._answers.readinto(room)
            if not count:
                raise EOFError
            room = room[count:]
        return values, photometric


_LOCK = threading.Lock()
_DECODER: _Decoder | None = None
