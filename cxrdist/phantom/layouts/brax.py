"""BRAX 1.1.0: one spreadsheet with both a DICOM and a PNG path, CheXpert's labels, ages in bins of five years."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cxrdist.phantom.acquisition import Beam, stamp
from cxrdist.phantom.layouts.base import Item, Layout, Order, patient_of, patients_of, site_picture, study_findings
from cxrdist.phantom.layouts.chex14 import LABELS, label_cells
from cxrdist.phantom.layouts.dicom_file import Syntax, new_uid, pixel_dataset, save_dicom, stored_values
from cxrdist.phantom.layouts.files import eight_bit, write_csv, write_index_html, write_picture
from cxrdist.phantom.people import Draw, Projection

CODE = 9
AGE_MEAN = 58.0
TABLE = "master_spreadsheet_update.csv"
DICOMS, PNGS = "Anonymized_DICOMs", "images"
HEADER = (
    *("DicomPath", "PngPath", "PatientID", "PatientSex", "PatientAge", "AccessionNumber", "StudyDate", *LABELS),
    *("ViewPosition", "Rows", "Columns", "Manufacturer"),
)
PREVALENCE = {
    **{"cardiomegaly": 0.2, "effusion": 0.12, "edema": 0.04, "pneumothorax": 0.05, "consolidation": 0.08},
    **{"atelectasis": 0.1, "pneumonia": 0.06, "nodule": 0.06, "mass": 0.03, "pleural_thickening": 0.04},
    **{"rib_fracture": 0.03, "enlarged_cardiomediastinum": 0.04, "support_devices": 0.2},
}


def plan(order: Order) -> list[Item]:
    """Return the images, sorted by path: one to three studies per patient, many with a lateral."""
    items = []
    for key, rng in patients_of(order, CODE):
        word = rng.bytes(16).hex()
        named = "id_" + "-".join((word[:8], word[8:12], word[12:16], word[16:20], word[20:]))
        image = 0
        for study in range(int(rng.choice([1, 2, 3], p=[0.75, 0.18, 0.07]))):
            bed = rng.random() < 0.4
            findings = study_findings(key, study, order, sicker=1.3 if bed else 0.8)
            uid = new_uid(rng)
            taken = {"patient": named, "study": study, "study_uid": uid, "accession": rng.bytes(8).hex()}
            taken["date"] = f"{rng.integers(2105, 2190)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
            projections: list[Projection] = ["AP"] if bed else ["PA"]
            if not bed and rng.random() < 0.7:
                projections.append("lateral")
            for projection in projections:
                series, instance = new_uid(rng), new_uid(rng)
                side = "RL" if rng.random() < 0.2 else "L"
                facts = taken | {
                    "series_uid": series,
                    "uid": instance,
                    "view": side if projection == "lateral" else projection,
                    "inverse": rng.random() < 0.15,
                    "bits": int(rng.choice([10, 12, 14])),
                    "maker": int(rng.integers(1, 6)),
                }
                path = f"{DICOMS}/{named}/Study_{uid}/Series_{series}/image-{instance}.dcm"
                items.append(Item(path, key.of_image(image), projection, findings, facts))
                image += 1
    items.sort(key=lambda item: item.path)
    return _with_traps(items) if order.traps else items


def _with_traps(items: list[Item]) -> list[Item]:
    frontal = [k for k, item in enumerate(items) if item.projection != "lateral"]
    return [
        replace(item, facts={**item.facts, "view": ""}) if k in frontal[2::20] else item for k, item in enumerate(items)
    ]


def png_path(item: Item) -> str:
    """Return where an image lies as PNG: the same folders under another top."""
    return item.path.replace(DICOMS, PNGS, 1).removesuffix(".dcm") + ".png"


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one image into both trees: a DICOM of 10 to 14 bits, and an 8-bit PNG with the right polarity."""
    rng = item.key.passing(Draw.TABLE)
    bed = item.projection == "AP"
    beam = Beam(
        photons=rng.uniform(1.2e6, 2.5e6) if bed else rng.uniform(2.5e6, 6e6),
        scatter=rng.uniform(0.5, 0.75) if bed else rng.uniform(0.25, 0.4),
        gamma=rng.uniform(0.9, 1.1),
    )
    rows, columns = [(1.2, 1.0), (1.0, 1.2), (1.0, 1.0)][int(rng.integers(0, 3))]
    grey = site_picture(item, beam, (round(order.size * rows), round(order.size * columns)), age_mean=AGE_MEAN)
    if item.projection != "lateral":
        stamp(grey, "D", (rng.uniform(0.04, 0.1), rng.uniform(0.03, 0.1)), 0.05)
    bits = item.facts["bits"]
    stored = stored_values(grey, bits, inverse=item.facts["inverse"], high=rng.uniform(0.92, 1.0))
    syntax: Syntax = "rle" if rng.random() < 0.25 else "explicit"
    ds = pixel_dataset(stored, bits, inverse=item.facts["inverse"], uid=item.facts["uid"], syntax=syntax)
    ds.SOPClassUID, ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPClassUID, item.facts["uid"]
    ds.StudyInstanceUID, ds.SeriesInstanceUID = item.facts["study_uid"], item.facts["series_uid"]
    ds.PatientID = ds.PatientName = item.facts["patient"]
    ds.Modality, ds.StudyDate, ds.ViewPosition = "DX", item.facts["date"], item.facts["view"]
    ds.WindowCenter, ds.WindowWidth = 1 << (bits - 1), 1 << bits
    save_dicom(ds, path)
    png = path.parents[4] / png_path(item)
    png.parent.mkdir(parents=True, exist_ok=True)
    write_picture(png, eight_bit(grey))


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the spreadsheet; there is no official split."""
    write_csv(out / TABLE, HEADER, [_row(item) for item in items])
    if order.traps:
        for top in (DICOMS, PNGS):
            write_index_html(out / top)


def _row(item: Item) -> list[object]:
    facts = item.facts
    patient = patient_of(item, age_mean=AGE_MEAN)
    age = "85 or more" if patient.age >= 85 else str(5 * (patient.age // 5))
    cells = label_cells(LABELS, item.labels, item.key.lasting(Draw.TABLE, 100 + facts["study"]))
    named = [item.path, png_path(item), facts["patient"], patient.sex, age, facts["accession"], facts["date"]]
    return [*named, *cells, facts["view"], 2500, 2048, f"Phantom{facts['maker']}"]


LAYOUT = Layout("brax", CODE, 512, PREVALENCE, 0.4, 0.0, plan, write_image, write_tables)
