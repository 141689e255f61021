"""NIAID TB Portals, as its releases of 2023 are reported: tables by imaging study, DICOM by patient, study and series.

Every case has tuberculosis; what varies is where, how much, and with what else.  The layout changes from release to
release, so this one stands for how the tables hang together: an image's path in one table, a row per reader's remark on
a sixth of the lungs in another, the patient's case in a third.
"""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from cxrdist.phantom.acquisition import Beam, collimate, stamp
from cxrdist.phantom.disease import strength
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
from cxrdist.phantom.layouts.dicom_file import (
    COMPUTED_RADIOGRAPHY,
    DIGITAL_XRAY,
    SECONDARY_CAPTURE,
    add_whole_window,
    new_uid,
    pixel_dataset,
    save_dicom,
    stored_values,
)
from cxrdist.phantom.layouts.files import write_csv, write_ds_store
from cxrdist.phantom.people import Draw, Projection
from cxrdist.phantom.shapes import affected_sides

CODE = 17
AGE_MEAN = 42.0
DATA = "TB_Portals_Published_Imaging_Data_August_2023"
IMAGES = "TB_Portals_Published_CXRs_August_2023/GlobalBucket"
COUNTRIES = ("Belarus", "Georgia", "Kazakhstan", "Moldova", "Romania", "Ukraine")
CXRS = (
    *("patient_id", "condition_id", "imagingstudy_id", "started", "uid", "series_uid", "series_instance_uid"),
    *("series_instance_content_url", "series_modality_cd", "status", "country", "cxr_outlier"),
)
CASES = (
    *("patient_id", "condition_id", "identifier", "country", "age_of_onset", "gender", "case_definition"),
    *("type_of_resistance", "outcome", "x_ray_count"),
)
REMARKS = (
    *("condition_id", "imagingstudy_id", "rater", "sextant", "overallpercentofabnormalvolume", "timika_score"),
    *("pleural_effusion_percent_of_hemithorax_involved", "ispleuraleffusionbilateral", "smallcavities"),
    *("mediumcavities", "largecavities", "infiltrate_lowgroundglassdensity", "smallnodules", "mediumnodules"),
)
PREVALENCE = {"tuberculosis": 0.95, "effusion": 0.16, "lung_cavity": 0.2, "nodule": 0.2, "fibrosis": 0.15}
"""Tuberculosis is drawn in every image, whatever its share here."""


def plan(order: Order) -> list[Item]:
    """Return the images: one case per patient, one to three studies; a few laterals are marked as outliers."""
    items = []
    for key, rng in patients_of(order, CODE):
        patient = key.patient
        ids = {
            "patient": str(UUID(bytes=rng.bytes(16), version=4)),
            "condition": str(UUID(bytes=rng.bytes(16), version=4)),
        }
        luck, day = rng.random(), 0
        for image in range(int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15]))):
            drawn = study_findings(key, image, order, sicker=1.0)
            findings = {"tuberculosis": strength(order.difficulty, luck), **drawn}
            outlier = order.traps and patient % 8 == 2 and image == 0
            uids, film = [new_uid(rng) for _ in range(3)], order.traps and patient % 12 == 4
            facts = ids | {
                "study": str(UUID(bytes=rng.bytes(16), version=4)),
                "uids": uids,
                "day": day,
                "film": film,
                "modality": "XC" if film else "CR" if rng.random() < 0.6 else "DX",
                "outlier": outlier,
            }
            projection: Projection = "lateral" if outlier else "PA" if rng.random() < 0.8 else "AP"
            path = "/".join([IMAGES, ids["patient"], *uids]) + ".dcm"
            # The drawing of tuberculosis has a cavity on each side.
            seen = frozenset({"lung_cavity"})
            items.append(Item(path, key.of_image(image), projection, findings, facts, seen))
            day += int(rng.integers(20, 200))
    return items


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one DICOM file: CR, DX, or a film that was scanned."""
    rng = item.key.passing(Draw.TABLE)
    film = item.facts["film"]
    beam = Beam(photons=rng.uniform(1e6, 4e6), scatter=rng.uniform(0.3, 0.5))
    long = round(order.size * rng.uniform(1.0, 1.2))
    grey = site_picture(item, beam, (long, order.size), age_mean=AGE_MEAN)
    if film:
        grey = collimate(grey, rng.uniform(0.01, 0.05, 4), 1.0)  # the light box around the film
        if item.key.image == 0:  # what a film's label would say of its patient
            stamp(grey, f"PHANTOM CASE {item.key.patient + 1:03d} 05.03.2021", (0.08, 0.07), 0.035)
    elif item.projection != "lateral" and rng.random() < 0.6:
        stamp(grey, "R", (rng.uniform(0.05, 0.1), rng.uniform(0.03, 0.1)), 0.05)
    bits = 8 if film else int(rng.choice([10, 12, 14]))
    inverse = rng.random() < 0.3 and not film
    sop_class = {"XC": SECONDARY_CAPTURE, "CR": COMPUTED_RADIOGRAPHY, "DX": DIGITAL_XRAY}[item.facts["modality"]]
    study, series, uid = item.facts["uids"]
    ds = pixel_dataset(
        stored_values(grey, bits, inverse=inverse),
        bits,
        inverse=inverse,
        uid=uid,
        sop_class=sop_class,
        syntax="jpeg2000" if not film and rng.random() < 0.3 else "explicit",
    )
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = sop_class, uid, study, series
    ds.PatientName, ds.PatientID = "PHANTOM^CASE", item.facts["patient"]
    ds.PatientSex, ds.StudyDate = patient_of(item, age_mean=AGE_MEAN).sex, f"2{100 + int(item.facts['day']) // 300}0101"
    ds.Modality, ds.Manufacturer = "OT" if film else item.facts["modality"], "Phantom Devices"
    ds.PatientIdentityRemoved = "YES"
    if film:
        ds.ConversionType = "DF"  # digitised film, PS3.3 C.8.6.1
    elif rng.random() < 0.7:
        ds.ViewPosition = "LL" if item.projection == "lateral" else item.projection
    if bits > 8 and rng.random() < 0.7:
        add_whole_window(ds, bits)
    save_dicom(ds, path)


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the images, the readers' remarks, and the cases; one image without remarks, one row without an image."""
    rows = [_image_row(item) for item in items]
    if order.traps:
        # A study whose images were withdrawn: the path is blank.
        rows.append([*rows[-1][:2], "phantom-study-without-images", *rows[-1][3:]])
        rows[-1][4:8] = [None] * 4
        write_ds_store(out / IMAGES)
    write_csv(out / DATA / "TB_Portals_CXRs_August_2023.csv", CXRS, rows)
    told = [item for k, item in enumerate(items) if not (order.traps and k == 1)]
    remarks = [row for item in told for row in _remarks(item)]
    write_csv(out / DATA / "TB_Portals_CXR_Manual_Annotations_August_2023.csv", REMARKS, remarks)
    first = {item.key.patient: item for item in reversed(items)}
    cases = [_case(first[patient], items) for patient in sorted(first)]
    clinical = out / DATA.replace("Imaging", "Clinical")
    write_csv(clinical / "TB_Portals_Patient_Cases_August_2023.csv", CASES, cases)


def _image_row(item: Item) -> list[object]:
    facts = item.facts
    url = "/".join(item.path.split("/")[2:])
    ids = [facts["patient"], facts["condition"], facts["study"], facts["day"], *facts["uids"], url]
    return [*ids, facts["modality"], "available", _country(item), "outlier" if facts["outlier"] else "normal"]


def _remarks(item: Item) -> list[list[object]]:
    """Return the readers' rows: one of the whole image, and one for each upper sixth with infiltrates."""
    exam, found = exam_of(item, age_mean=AGE_MEAN), item.findings
    sides = affected_sides(exam, "tuberculosis", both=0.35)
    wet = affected_sides(exam, "effusion") if "effusion" in found else []
    percent = round(10 * len(sides) + 15 * found["tuberculosis"] + 10 * len(wet))
    cavities = len(sides) + ("lung_cavity" in found)  # the drawing of tuberculosis has one on each side
    start = [item.facts["condition"], item.facts["study"], "Radiologist 1"]
    whole = [percent, percent + 40, 25 * len(wet), "Yes" if len(wet) == 2 else "No", 0, cavities, 0, None]
    rows: list[list[object]] = [[*start, None, *whole, int("nodule" in found), 0]]
    for side in sides:
        sextant = f"Upper {'Right' if side < 0 else 'Left'}"
        rows.append([*start, sextant, percent, percent + 40, None, None, None, None, None, "25-50%", None, None])
    return rows


def _case(item: Item, items: Sequence[Item]) -> list[object]:
    patient, rng = patient_of(item, age_mean=AGE_MEAN), item.key.lasting(Draw.TABLE, 4)
    count = sum(other.key.patient == item.key.patient for other in items)
    resistance = str(rng.choice(["Sensitive", "MDR non XDR", "XDR"]))
    outcome = str(rng.choice(["Cured", "Completed", "Failure", "Still on treatment"]))
    ids = [item.facts["patient"], item.facts["condition"], f"PH-{item.key.patient + 1:05d}", _country(item)]
    return [*ids, patient.age, {"F": "Female", "M": "Male"}[patient.sex], "New", resistance, outcome, count]


def _country(item: Item) -> str:
    return COUNTRIES[int(item.key.lasting(Draw.TABLE, 5).integers(0, len(COUNTRIES)))]


LAYOUT = Layout("tb_portals", CODE, 512, PREVALENCE, 0.0, 0.0, plan, write_image, write_tables)
