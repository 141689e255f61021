"""MIMIC-CXR 2.1.0: one plan and one set of stored pixels, written as the DICOM project or as the JPG project.

The same order gives the same patients, studies and image ids in both.  A JPEG is made as the project's maintainers do
it: a file's stored values are stretched from their minimum to their maximum, inverted where they are MONOCHROME1, and
histogram equalised; no window takes part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from cxrdist.phantom.acquisition import Beam, collimate, stamp
from cxrdist.phantom.layouts import mimic_tables
from cxrdist.phantom.layouts.base import Item, Layout, Order, patients_of, site_picture, study_findings, three_parts
from cxrdist.phantom.layouts.dicom_file import Syntax, new_uid, pixel_dataset, save_dicom, stored_values
from cxrdist.phantom.people import Draw, Key, Projection

CODE = 4
AGE_MEAN = 61.0

PREVALENCE = {
    **{"cardiomegaly": 0.22, "effusion": 0.22, "edema": 0.15, "pneumothorax": 0.08, "consolidation": 0.1},
    **{"atelectasis": 0.2, "pneumonia": 0.12, "nodule": 0.05, "mass": 0.04, "pleural_thickening": 0.04},
    **{"rib_fracture": 0.03, "clavicle_fracture": 0.01, "enlarged_cardiomediastinum": 0.06, "support_devices": 0.3},
    **{"emphysema": 0.05, "fibrosis": 0.03},
}

CODED = {"PA": "postero-anterior", "AP": "antero-posterior", "lateral": "lateral"}
"""What ViewCodeSequence calls a projection."""

SHAPES = ((1.0, 1.2), (1.22, 1.0), (1.0, 1.0))
"""Rows and columns over the short side."""


def plan(order: Order, suffix: str) -> list[Item]:
    """Return the images, sorted by path: one to three studies per patient, each with one to three images."""
    parts = three_parts(order, CODE, validating=12)
    items = []
    for key, rng in patients_of(order, CODE):
        items += list(_images_of(order, key, rng, parts[key.patient], suffix))
    items.sort(key=lambda item: item.path.rsplit(".", 1)[0])
    return _with_traps(items) if order.traps else items


def _images_of(order: Order, key: Key, rng: np.random.Generator, part: str, suffix: str) -> Iterator[Item]:
    subject = _number(1, key.patient)
    image = 0
    for study in range(int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15]))):
        bed = rng.random() < 0.6
        findings = study_findings(key, study, order, sicker=1.2 if bed else 0.8)
        named = _number(5, 8 * key.patient + study)
        taken = {
            "part": part,
            "subject": subject,
            "study": study,
            "study_id": named,
            "study_uid": new_uid(rng),
            "date": f"21{rng.integers(10, 99)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
            "time": f"{rng.integers(0, 24):02d}{rng.integers(0, 60):02d}{rng.integers(0, 60):02d}.000",
            "erect": not bed,
        }
        again = rng.random(2)
        projections: list[Projection] = ["AP"] if bed else ["PA"]
        projections += ["lateral"] if again[0] < (0.06 if bed else 0.8) else []
        projections += [projections[0]] if again[1] < 0.08 else []  # an exposure was repeated
        for projection in projections:
            words = rng.bytes(20).hex()
            dicom = "-".join(words[k : k + 8] for k in range(0, 40, 8))
            facts = taken | {
                "dicom_id": dicom,
                "view": ("LL" if rng.random() < 0.25 else "LATERAL") if projection == "lateral" else projection,
                "coded": CODED[projection],
                "inverse": rng.random() < 0.3,
                "bits": int(rng.choice([12, 14, 12, 13])),
                "shape": int(rng.integers(0, len(SHAPES))),
            }
            folder = f"files/p{str(subject)[:2]}/p{subject}/s{named}"
            yield Item(f"{folder}/{dicom}{suffix}", key.of_image(image), projection, findings, facts)
            image += 1


def _number(first: int, index: int) -> int:
    """Return an eight-digit id that begins with `first`; the factor shares none with 10^7, so no id repeats."""
    return first * 10_000_000 + (index * 7_368_787 + 1_234_567) % 10_000_000


def _with_traps(items: list[Item]) -> list[Item]:
    """Blank the view of some images: of the first ones ViewCodeSequence still tells it, of one nothing does."""
    frontal = [k for k, item in enumerate(items) if item.projection != "lateral" and item.facts["part"] == "train"]
    lateral = [k for k, item in enumerate(items) if item.projection == "lateral" and item.facts["part"] == "train"]
    planted: list[tuple[list[int], dict[str, str]]] = [
        (frontal[1::25], {"view": ""}),
        (frontal[:1], {"view": "", "coded": ""}),
        (lateral[1::25], {"view": ""}),
        (lateral[2:3], {"view": "XTABLE LATERAL"}),
    ]
    out = list(items)
    for places, facts in planted:
        for k in places:
            out[k] = replace(items[k], facts={**items[k].facts, **facts})
    return out


def stored_picture(item: Item, order: Order) -> np.ndarray:
    """Return the stored values (uint16, `bits` of them used) that both projects' files are made from."""
    rng = item.key.passing(Draw.TABLE)
    bed = item.projection == "AP"
    beam = Beam(
        photons=rng.uniform(1.0e6, 2.5e6) if bed else rng.uniform(2.5e6, 5e6),
        scatter=rng.uniform(0.5, 0.75) if bed else rng.uniform(0.25, 0.4),
        gamma=rng.uniform(0.9, 1.1),
    )
    tall, wide = SHAPES[item.facts["shape"]]
    grey = site_picture(item, beam, (round(order.size * tall), round(order.size * wide)), age_mean=AGE_MEAN)
    if rng.random() < 0.3:
        grey = collimate(grey, rng.uniform(0, 0.04, 4))
    if item.projection != "lateral":
        stamp(grey, "L", (rng.uniform(0.86, 0.92), rng.uniform(0.03, 0.1)), 0.055)
    low, high = rng.uniform(0.0, 0.05), rng.uniform(0.9, 1.0)
    return stored_values(grey, item.facts["bits"], inverse=item.facts["inverse"], low=low, high=high)


def write_dicom(item: Item, order: Order, path: Path) -> None:
    """Draw one DICOM file: 12 to 14 bits in 16, uncompressed."""
    stored = stored_picture(item, order)
    facts, bits = item.facts, item.facts["bits"]
    rng = item.key.passing(Draw.TABLE, 1)
    uid = new_uid(rng)
    syntax: Syntax = "implicit" if rng.random() < 0.3 else "explicit"
    ds = pixel_dataset(stored, bits, inverse=facts["inverse"], uid=uid, syntax=syntax)
    ds.SOPClassUID, ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPClassUID, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = facts["study_uid"], new_uid(rng)
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = str(facts["subject"]), "", "", ""
    ds.StudyID, ds.AccessionNumber = str(facts["study_id"]), ""
    ds.StudyDate, ds.StudyTime = facts["date"], facts["time"]
    ds.Modality, ds.Manufacturer, ds.ConversionType = "DX", "Phantom Devices", ""
    ds.ViewPosition, ds.PatientOrientation = facts["view"], ""
    if facts["coded"]:
        ds.ViewCodeSequence = DicomSequence([_code("R-10202", "SNM3", str(facts["coded"]))])
    # PS3.15 Annex E: how the header was cleaned.
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethodCodeSequence = DicomSequence(
        [_code(code, "DCM", meaning) for code, meaning in _CLEANED.items()]
    )
    ds.ImagerPixelSpacing = [f"{350.0 / order.size:.4f}"] * 2
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.PresentationLUTShape = "INVERSE" if facts["inverse"] else "IDENTITY"
    if rng.random() < 0.85:
        # Window tags speak of stored values, before any inversion.
        centre, width = 1 << (bits - 1), 1 << bits
        ds.WindowCenter, ds.WindowWidth = centre, width
        if rng.random() < 0.2:
            ds.WindowCenter, ds.WindowWidth = [centre, centre - 200], [width, width // 2]
    save_dicom(ds, path, compressed=path.suffix == ".gz")


_CLEANED = {
    "113100": "Basic Application Confidentiality Profile",
    "113105": "Clean Descriptors Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113101": "Clean Pixel Data Option",
    "113103": "Clean Graphics Option",
}


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds


def write_jpg(item: Item, order: Order, path: Path) -> None:
    """Draw one JPEG: minimum to maximum, polarity, global histogram equalisation, quality 95."""
    stored = stored_picture(item, order).astype(np.float64)
    stored -= stored.min()
    grey = (stored / max(stored.max(), 1) * 255).astype(np.uint8)
    if item.facts["inverse"]:
        grey = cv2.bitwise_not(grey)
    cv2.imwrite(str(path), cv2.equalizeHist(grey), [cv2.IMWRITE_JPEG_QUALITY, 95])


def plan_dicom(order: Order) -> list[Item]:
    """Return the images of the DICOM project; trap: one file is gzip-compressed, as early listings show all of them."""
    items = plan(order, ".dcm")
    place = next((k for k, item in enumerate(items) if order.traps and item.facts["part"] == "test"), None)
    if place is not None:
        items[place] = replace(items[place], path=items[place].path + ".gz")
    return items


def plan_jpg(order: Order) -> list[Item]:
    """Return the images of the JPG project."""
    return plan(order, ".jpg")


def write_dicom_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the DICOM project's lists and reports; it has no labels."""
    mimic_tables.write_lists(items, order, out)
    mimic_tables.write_reports(items, order, out)


def write_jpg_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the JPG project's metadata, split and labels."""
    mimic_tables.write_metadata(items, order, out)
    mimic_tables.write_labels(items, order, out)


DICOM = Layout("mimic_cxr", CODE, 512, PREVALENCE, 0.3, 0.2, plan_dicom, write_dicom, write_dicom_tables)
JPG = Layout("mimic_cxr_jpg", CODE, 512, PREVALENCE, 0.3, 0.2, plan_jpg, write_jpg, write_jpg_tables)
