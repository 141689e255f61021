"""Decoding pixel data.  Run as a module it is the process that `cxrdist.dicom.isolation` talks to."""

import os
import pickle
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEGExtended12Bit

from cxrdist.dicom.jpeg12 import decode_jpeg12

MOST_MEMORY = 3 * 2**30
"""Address space of the process in bytes; an image of the default limit takes a third of it."""

READY = "ready"


@dataclass(frozen=True)
class Encoded:
    """Pixel data, and what a checked header says of it."""

    syntax: str
    plugin: str
    """The decoder of pydicom's to take."""
    rows: int
    columns: int
    samples: int
    planar: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    data: bytes
    """Pixel Data (7FE0,0010); in its encapsulation, if the syntax has one."""
    vr: str
    """Of that element, OB or OW: big endian swaps the bytes of words."""


def decode_pixels(encoded: Encoded) -> tuple[np.ndarray, str]:
    """Return (rows, columns) or (rows, columns, 3) values, and what their channels mean.

    Raises:
        Exception: Whatever a decoder stumbles over; those in Rust panic with one that is no `Exception`.
    """
    if encoded.syntax == JPEGExtended12Bit and encoded.samples == 1 and 8 < encoded.bits_stored <= 12:
        frame = next(generate_frames(encoded.data, number_of_frames=1))
        values = decode_jpeg12(frame, encoded.rows, encoded.columns, signed=encoded.signed)
        return values, encoded.photometric
    ds = Dataset()
    ds.Rows, ds.Columns, ds.NumberOfFrames = encoded.rows, encoded.columns, 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation = encoded.samples, encoded.photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = encoded.bits_allocated, encoded.bits_stored, encoded.high_bit
    ds.PixelRepresentation = int(encoded.signed)
    if encoded.samples > 1:
        ds.PlanarConfiguration = encoded.planar
    ds.add_new("PixelData", encoded.vr, encoded.data)
    values, told = get_decoder(UID(encoded.syntax)).as_array(
        ds,
        raw=True,  # YBR stays YBR: its first channel is all that is wanted, and turning it takes memory
        view_only=True,
        decoding_plugin=encoded.plugin,
        correct_unused_bits=False,  # it forgets HighBit: `stored_values` does it
        allow_excess_frames=False,
    )
    return values, str(told["photometric_interpretation"])


def serve() -> None:
    """Decode what comes in on standard input until it ends.

    The first thing it says is `READY`.  To each pickled `Encoded` the answer is a pickled (photometric, dtype, shape)
    and the values' bytes, or None.
    """
    with suppress(OSError, ValueError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Decoders print to both streams; one is our channel and the other the user's terminal.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    pickle.dump(READY, answers)
    answers.flush()
    with suppress(EOFError):
        while True:
            _answer(pickle.load(requests), answers)


def _answer(encoded: Encoded, answers: BinaryIO) -> None:
    try:
        values, photometric = decode_pixels(encoded)
        values = np.ascontiguousarray(values)
    except BaseException:
        pickle.dump(None, answers)
    else:
        pickle.dump((photometric, values.dtype.str, values.shape), answers)
        answers.write(values.data.cast("B"))
    answers.flush()


if __name__ == "__main__":
    serve()
