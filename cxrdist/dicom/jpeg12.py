"""Lossy JPEG with 12 bits (process 4): GDCM decodes it, but pydicom's plugin does not let it."""

import gdcm  # type: ignore[import-untyped]
import numpy as np


def decode_jpeg12(frame: bytes, rows: int, columns: int, *, signed: bool) -> np.ndarray:
    """Return the (rows, columns) values, uint16 or int16, of one grey 12-bit JPEG frame.

    Raises:
        ValueError: If the frame does not decode to that many values.
    """
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, int(signed)))
    # GDCM hands bytes over as text.
    buffer = (image.GetBuffer() or "").encode("utf-8", "surrogateescape")
    return np.frombuffer(buffer, "<i2" if signed else "<u2").reshape(rows, columns)
