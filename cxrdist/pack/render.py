"""From a row to the two members of a sample: the encoded image and its JSON."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from cxrdist.datasets.records import FRONTAL, OLDEST, PROJECTIONS, Row
from cxrdist.datasets.shard_format import EXTENSIONS, Preprocessing, source_allows
from cxrdist.dicom import Radiograph, quantise, read_radiograph
from cxrdist.errors import ImageRejectedError, UserError
from cxrdist.pack.plan import Planned


@dataclass(frozen=True)
class Rendered:
    """One sample, ready for the tar."""

    image: bytes
    json: bytes
    fields: dict[str, Any]
    """What `json` says."""
    pixels_sha256: str
    """Hash of size and pixels before encoding: equal for images that look the same to the last grey level."""

    def without_data(self) -> "Rendered":
        """Return what is left to know once the members are written; a shard's images would fill the memory."""
        return replace(self, image=b"", json=b"")


def render(planned: Planned, findings: tuple[str, ...], how: Preprocessing) -> Rendered:
    """Return the sample of one image.

    Raises:
        ImageRejectedError: If it cannot become a sample.  Nothing else is raised for anything a file may hold.
        UserError: If this machine cannot read any such file.
    """
    try:
        radiograph = read_radiograph(
            planned.row.path,
            hints=planned.row.pixels,
            equalize=how.equalize,
            size=how.size,
            burned_in_text=how.burned_in_text or "reject",
            declared_text=how.declared_text,
        )
        projection = _projection(planned.row, radiograph, how)
        pixels = quantise(radiograph.pixels, how.bits)
    except UserError:
        raise
    except Exception as error:
        # A decoder's message can quote the file's name or its header; its class cannot.
        raise ImageRejectedError("unreadable", f"decoding failed with {type(error).__name__}") from None
    if pixels.min() == pixels.max():
        raise ImageRejectedError("constant_image", f"one grey level after reduction to {how.bits} bits")
    fields = _fields(planned, findings, radiograph, projection, pixels)
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    shape = f"{pixels.dtype} {pixels.shape} ".encode()
    digest = hashlib.sha256(shape + np.ascontiguousarray(pixels).tobytes()).hexdigest()
    return Rendered(encode(pixels, how), text.encode(), fields, digest)


def encode(pixels: np.ndarray, how: Preprocessing) -> bytes:
    """Return (H, W) uint8 or uint16 `pixels` as a JPEG or PNG file, without any metadata."""
    if how.format == "jpeg":
        options = [cv2.IMWRITE_JPEG_QUALITY, how.quality or 95]
    else:
        # On radiographs of 512 pixels level 6 is 5 % smaller, and takes 29 ms an image instead of 8.
        options = [cv2.IMWRITE_PNG_COMPRESSION, 3]
    try:
        done, data = cv2.imencode(f".{EXTENSIONS[how.format]}", pixels, options)
    except cv2.error:
        done, data = False, np.empty(0, np.uint8)
    if not done:
        raise ImageRejectedError("unsupported", f"{pixels.shape[0]} x {pixels.shape[1]} pixels do not fit {how.format}")
    return bytes(data)


def _projection(row: Row, radiograph: Radiograph, how: Preprocessing) -> str:
    """Return the projection; what the dataset says wins, the file's header fills the gap."""
    if row.projection != "unknown":
        return row.projection
    header = radiograph.projection if radiograph.projection in PROJECTIONS else None
    if header is None and how.projection == "frontal" and row.notes.get("projection_from_header"):
        raise ImageRejectedError("projection_filtered", "unknown")  # the dataset left it to the header alone
    if header is None or header in FRONTAL:
        return header or "unknown"
    if row.notes.get("frontal"):  # the dataset knows that much
        return "unknown"
    if how.projection == "frontal":
        raise ImageRejectedError("projection_filtered", f"the header says {header}")
    return header


def _fields(
    planned: Planned, findings: tuple[str, ...], radiograph: Radiograph, projection: str, pixels: np.ndarray
) -> dict[str, Any]:
    row = planned.row
    age = row.age if row.age is not None else radiograph.age
    soft = {"soft": row.soft} if row.soft else {}
    return {
        "image_id": planned.image_id,
        "patient_id": planned.patient_id,
        "study_id": planned.study_id,
        "projection": projection,
        "sex": row.sex if row.sex != "unknown" else radiograph.sex or "unknown",
        "age": None if age is None else min(int(age), OLDEST),
        "findings": {finding: row.findings.get(finding) for finding in findings},
        **soft,
        "height": int(pixels.shape[0]),
        "width": int(pixels.shape[1]),
        "source": _source(radiograph, row),
    }


def _source(radiograph: Radiograph, row: Row) -> dict[str, Any]:
    remarks = {**radiograph.notes, "bits": radiograph.bits, **row.notes}
    if row.origin is not None:
        remarks["origin"] = row.origin
    return {name: value for name, value in remarks.items() if source_allows(name, value)}
