"""How a drawn picture becomes a DICOM file: stored values, the pixel module, a transfer syntax.

Layouts add the elements that their data set's headers have.  UIDs are random numbers under 2.25, the root that needs
no registration (PS3.5 B.2), so they name nothing that exists.
"""

import gzip
import io
import warnings
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
DIGITAL_XRAY = "1.2.840.10008.5.1.4.1.1.1.1"  # For Presentation
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

Syntax = Literal["explicit", "implicit", "jpeg2000", "jpeg", "rle"]


def new_uid(rng: np.random.Generator) -> str:
    """Return a UID of nothing."""
    return f"2.25.{int.from_bytes(rng.bytes(16), 'big')}"


def stored_values(grey: np.ndarray, bits: int, *, inverse: bool, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Return uint8 or uint16 values of `bits` bits of a display picture in [0, 1].

    Args:
        grey: (H, W), bright = dense.
        bits: 8, or up to 16.
        inverse: Small values are bright (MONOCHROME1).
        low: Share of the range where black lies; real detectors rarely use the whole range.
        high: And where white lies.
    """
    top = (1 << bits) - 1
    kind = np.uint8 if bits == 8 else np.uint16
    stored = np.rint((low + (high - low) * grey) * top).astype(kind)
    return (top - stored).astype(kind) if inverse else stored


def pixel_dataset(
    stored: np.ndarray, bits: int, *, inverse: bool, uid: str, sop_class: str = DIGITAL_XRAY, syntax: Syntax
) -> Dataset:
    """Return a data set that holds `stored` and the elements that describe it, and nothing else.

    Args:
        stored: (H, W) uint8 or uint16.
        bits: Bits stored.
        inverse: Whether the values are MONOCHROME1's.
        uid: SOP instance UID, for the file's own header.
        sop_class: SOP class UID, for the file's own header.
        syntax: How the pixels are written; ``jpeg`` (8 bit, lossy) is the baseline process.
    """
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if syntax == "implicit" else ExplicitVRLittleEndian
    # The file meta group needs an instance UID; it says nothing of a patient or a machine.
    ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = uid
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverse else "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape
    container = 8 * stored.dtype.itemsize
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = container, bits, bits - 1, 0
    if syntax == "jpeg":
        coded = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        ds.LossyImageCompression = "01"
        ds.PixelData = encapsulate([coded])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        return ds
    data = stored.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW"
    if syntax in ("jpeg2000", "rle"):
        ds.compress(JPEG2000Lossless if syntax == "jpeg2000" else RLELossless, generate_instance_uid=False)
    return ds


def add_whole_window(ds: Dataset, bits: int) -> None:
    """Add the window that spans all values of `bits` bits."""
    ds.WindowCenter, ds.WindowWidth = str(1 << (bits - 1)), str(1 << bits)


def save_dicom(ds: Dataset, path: Path, *, compressed: bool = False) -> None:
    """Write `ds` as a DICOM file; what real headers hold against the rules of their type is written as it is.

    `compressed` packs the file with gzip, without a date.
    """
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(file, enforce_file_format=True)
    path.write_bytes(gzip.compress(file.getvalue(), mtime=0) if compressed else file.getvalue())
