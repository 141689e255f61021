"""PadChest: 16-bit PNG and one table with labels as Python writes a list; a positive list, nothing else is said.

A PNG is what its authors' script left: the stored values under their window, divided by 4096, as 16 bits, so white is
65,519; a MONOCHROME1 image was not inverted.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cxrdist.phantom.acquisition import Beam, stamp
from cxrdist.phantom.layouts.base import (
    Item,
    Layout,
    Order,
    exam_of,
    patient_of,
    patients_of,
    site_picture,
    study_findings,
)
from cxrdist.phantom.layouts.files import write_csv, write_ds_store, write_index_html, write_picture
from cxrdist.phantom.layouts.padchest_labels import TRAPS, draw_trap, words_of
from cxrdist.phantom.people import Draw, Patient, Projection, draw_child

CODE = 5
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEADER = (
    *("", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
    *("ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Modality_DICOM", "Manufacturer_DICOM"),
    *("PhotometricInterpretation_DICOM", "PixelRepresentation_DICOM", "PixelAspectRatio_DICOM"),
    *("SpatialResolution_DICOM", "BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM", "Rows_DICOM"),
    *("Columns_DICOM", "XRayTubeCurrent_DICOM", "Exposure_DICOM", "ExposureInuAs_DICOM", "ExposureTime"),
    *("RelativeXRayExposure_DICOM", "ReportID", "Report", "MethodLabel", "Labels", "Localizations"),
    *("LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS"),
)
"""The first column is an index without a name."""

PREVALENCE = {
    **{"cardiomegaly": 0.18, "effusion": 0.14, "edema": 0.04, "consolidation": 0.06, "pneumonia": 0.12},
    **{"infiltration": 0.1, "atelectasis": 0.1, "nodule": 0.08, "mass": 0.04, "pneumothorax": 0.05, "emphysema": 0.08},
    **{"pleural_thickening": 0.08, "fibrosis": 0.06, "hernia": 0.06, "rib_fracture": 0.04, "clavicle_fracture": 0.01},
    **{"aortic_enlargement": 0.15, "enlarged_cardiomediastinum": 0.03, "calcification": 0.06, "tuberculosis": 0.04},
    **{"support_devices": 0.14, "lung_cavity": 0.02, "mediastinal_shift": 0.02},
}
CHILD_MONTHS = 7 * 12
CODED = {"PA": "POSTEROANTERIOR", "AP": "ANTEROPOSTERIOR", "lateral": "LATERAL"}


def plan(order: Order) -> list[Item]:
    """Return the images in the table's order: one to three studies per patient, upright ones mostly with a lateral."""
    items = []
    for key, rng in patients_of(order, CODE):
        named = _digits(rng, 36)
        birth = int(rng.integers(0, 2**31))
        image = 0
        for study in range(int(rng.choice([1, 2, 3], p=[0.6, 0.28, 0.12]))):
            bed = rng.random() < 0.25
            findings = study_findings(key, study, order, sicker=1.4 if bed else 0.9)
            taken = {
                "patient": named,
                "study": study,
                "study_id": _digits(rng, 38),
                "report_id": int(rng.integers(10**6, 10**7)),
                "year": int(rng.integers(2009, 2018)),
                "day": f"{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
                "odd_birth": birth % 97 == 5,
                "child": birth % 53 == 3,
            }
            projections: list[Projection] = ["AP"] if bed else ["PA"]
            if not bed and rng.random() < 0.7:
                projections.append("lateral")
            word = "AP_horizontal" if bed and rng.random() < 0.6 else None
            for projection in projections:
                facts = taken | {
                    "dir": int(rng.choice([*range(51), 54])),
                    "projection": word or ("L" if projection == "lateral" else projection),
                    "inverse": rng.random() < 0.02,
                    "trap": "",
                }
                name = f"225{_digits(rng, 42)}_{rng.integers(0, 5):02d}-{rng.integers(0, 200):03d}-{image:03d}.png"
                items.append(Item(f"{facts['dir']}/{name}", key.of_image(image), projection, findings, facts))
                image += 1
    return _with_traps(items) if order.traps else items


def _digits(rng: np.random.Generator, count: int) -> str:
    """Return a number that no float holds."""
    return "".join(map(str, rng.integers(1, 10, count)))


def _with_traps(items: list[Item]) -> list[Item]:
    """Plant one of each kind of odd row among the frontal images, and let one patient be a child."""
    out = list(items)
    frontal = [k for k, item in enumerate(items) if item.projection != "lateral"]
    child = items[frontal[len(frontal) // 2]].key.patient
    unborn = items[frontal[-1]].key.patient
    for k, item in enumerate(items):
        if item.key.patient == child:
            out[k] = replace(item, facts={**item.facts, "child": True})
        elif item.key.patient == unborn:
            out[k] = replace(item, facts={**item.facts, "odd_birth": True})
    places = iter(frontal)
    for trap in TRAPS:
        place = next((k for k in places if trap.fits(out[k].labels) and not out[k].facts["child"]), None)
        if place is None:
            break  # a very small set has no room for all
        # Words are those of a report, and of all its images; polarity and projection are one image's.
        study = out[place].facts["study_id"] if "trap" in trap.facts else None
        for k, item in enumerate(out):
            if k == place or item.facts["study_id"] == study:
                out[k] = replace(item, facts={**item.facts, **trap.facts})
    return out


def patient_in(item: Item) -> Patient:
    """Return the patient of an item, who may be a child."""
    return draw_child(item.key, CHILD_MONTHS) if item.facts["child"] else patient_of(item, age_mean=58)


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one PNG."""
    rng = item.key.passing(Draw.TABLE)
    beam = Beam(
        photons=rng.uniform(1.5e6, 5e6),
        scatter=rng.uniform(0.25, 0.6),
        gamma=rng.uniform(0.85, 1.1) * (1.5 if item.facts["projection"] == "COSTAL" else 1.0),
        sharpen=0.8 if item.facts["projection"] == "COSTAL" else 0.25,
    )
    rows = round(order.size * (1.0 if rng.random() < 0.5 else 1.2))
    trap = item.facts["trap"]
    grey = site_picture(
        item, beam, (rows, order.size), patient=patient_in(item), extra=lambda scene: draw_trap(scene, trap)
    )
    if item.projection != "lateral" and rng.random() < 0.7:
        stamp(grey, "D", (rng.uniform(0.04, 0.1), rng.uniform(0.03, 0.1)), 0.05)
    stored = np.rint(grey * 4095)
    if item.facts["inverse"]:
        stored = 4095 - stored
    write_picture(path, np.rint(stored / 4096 * 65535).astype(np.uint16))


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the one table; there is no official split."""
    write_csv(out / TABLE, HEADER, [_row(k, item, order) for k, item in enumerate(items)])
    if order.traps:
        folder = (out / items[0].path).parent
        write_ds_store(folder)
        write_index_html(folder)


def _row(number: int, item: Item, order: Order) -> list[object]:
    facts = item.facts
    patient = patient_in(item)
    rng = item.key.passing(Draw.TABLE, 1)
    study = item.key.lasting(Draw.TABLE, 100 + facts["study"])
    words = words_of(exam_of(item, patient=patient), facts["trap"])
    physician = study.random() < 0.27
    float_dir = order.traps and number % 3 == 1
    birth = 2000 + int(facts["year"]) % 100 + 3 if facts["odd_birth"] else int(facts["year"]) - patient.age
    manual = "Manual review of DICOM fields"
    named = [number, Path(item.path).name, f"{facts['dir']}.0" if float_dir else facts["dir"]]
    named += [f"{facts['year']}{facts['day']}", facts["study_id"], facts["patient"], birth, patient.sex]
    view = "" if rng.random() < 0.2 else CODED[item.projection]
    named += [view, facts["projection"], manual if rng.random() < 0.7 else "Resnet-50 predicted"]
    device: list[object] = ["PED" if facts["child"] else "No", "CR", "PhantomDevices"]
    device += [f"MONOCHROME{1 if facts['inverse'] else 2}", 0, "", 0.1, 12, 2047.0, 4095.0, 2500, 2048]
    exposure = [int(rng.integers(50, 400)), int(rng.integers(1, 10)), "", int(rng.integers(5, 40)), ""]
    said = [facts["report_id"], f"{' . '.join(words) or 'sin hallazgos'} .", "Physician" if physician else "RNN_model"]
    return [*named, *device, *exposure, *said, *_label_cells(words, facts["trap"], study)]


def _label_cells(words: list[str], trap: str, rng: np.random.Generator) -> list[str]:
    """Return the five label columns; items of a list may have a blank before them, as in the real table."""
    if trap == "blank":
        return ["", "", "", "", ""]
    if trap == "empty":
        return ["[]", "[]", "[]", "[]", "[]"]
    shown = [f" {word}" if k and rng.random() < 0.6 else word for k, word in enumerate(words)]
    # Each sentence of a report has its own labels: an abnormal report holds normal sentences.
    sentences = [[word, "loc basal"] for word in words] + [["normal"]]
    return [
        str(shown),
        "['loc basal']" if words else "[]",
        str(sentences),
        str(["C0000000"] * len(words)),
        "['C0000000']",
    ]


LAYOUT = Layout("padchest", CODE, 512, PREVALENCE, 0.35, 0.0, plan, write_image, write_tables)
