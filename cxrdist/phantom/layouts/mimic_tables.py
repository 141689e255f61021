"""The tables, lists and reports of MIMIC-CXR and MIMIC-CXR-JPG 2.1.0; their file names keep 2.0.0."""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from cxrdist.phantom.layouts.base import Item, Order
from cxrdist.phantom.layouts.chex14 import LABELS, label_cells
from cxrdist.phantom.layouts.files import write_csv, write_index_html
from cxrdist.phantom.people import Draw

METADATA = (
    *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns"),
    *("StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning"),
    "PatientOrientationCodeSequence_CodeMeaning",
)
LABELLED = sorted(LABELS)
"""Columns of the report labellers' tables, in the files' order."""

TEST_LABELLED = sorted({"Lung Opacity": "Airspace Opacity"}.get(name, name) for name in LABELS)
"""Columns of the radiologists' test set, which calls one of them otherwise and has no patients."""

NOWHERE = "Dr. Imogen Unreal-Phantasma"
"""Signs every report.  Nobody is called so."""


def studies(items: Sequence[Item]) -> list[Item]:
    """Return one image per study, in the order of the ids."""
    first: dict[int, Item] = {}
    for item in items:
        first.setdefault(int(item.facts["study_id"]), item)
    return sorted(first.values(), key=lambda item: (item.facts["subject"], item.facts["study_id"]))


def write_lists(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the lists of images, studies and providers; traps: what a recursive download leaves behind."""
    ids = [(item.facts["subject"], item.facts["study_id"]) for item in items]
    paths = [item.path.removesuffix(".gz") for item in items]
    records = [(*both, item.facts["dicom_id"], path) for both, item, path in zip(ids, items, paths, strict=True)]
    write_csv(out / "cxr-record-list.csv.gz", ["subject_id", "study_id", "dicom_id", "path"], records)
    rows = [(item.facts["subject"], item.facts["study_id"], report_path(item)) for item in studies(items)]
    write_csv(out / "cxr-study-list.csv.gz", ["subject_id", "study_id", "path"], rows)
    header = ["subject_id", "study_id", "ordering_provider_id", "attending_provider_id", "resident_provider_id"]
    providers = [(*row[:2], f"PF{row[1] % 97:04d}", f"PF{row[1] % 89:04d}", "") for row in rows]
    write_csv(out / "cxr-provider-list.csv.gz", header, providers)
    _write_surroundings(items, order, out)


def report_path(item: Item) -> str:
    """Return where a study's report lies: beside the study's folder, not in it."""
    return item.path.rsplit("/", 1)[0] + ".txt"


def write_reports(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write a report per study, once beside the images and once in an archive of all."""
    with zipfile.ZipFile(out / "mimic-cxr-reports.zip", "w") as archive:
        for item in studies(items):
            text = _report(item)
            (out / report_path(item)).write_text(text, encoding="utf-8")
            archive.writestr(zipfile.ZipInfo(report_path(item)), text)  # dated 1980, whenever it is written


def _report(item: Item) -> str:
    seen = sorted(name.replace("_", " ") for name in item.labels - {"no_finding"})
    findings = f"There is {', '.join(seen)}." if seen else "The lungs are clear. The heart is normal in size."
    technique = "Upright PA and lateral" if item.facts["erect"] else "Portable AP"
    return (
        f"                                 FINAL REPORT\n EXAMINATION:  CHEST ({technique})\n\n"
        f" INDICATION:  Phantom with cough.  Seen by {NOWHERE}.\n\n FINDINGS: \n \n {findings}\n \n"
        f" IMPRESSION: \n \n {'See above.' if seen else 'No acute cardiopulmonary process.'}\n"
    )


def write_metadata(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write what the headers said of each image, the official split, and the lists of a project's root."""
    rows = []
    for item in items:
        facts = item.facts
        step = "CHEST (PA AND LAT)" if facts["erect"] else "CHEST (PORTABLE AP)"
        tall, wide = _detector(item)
        cells = [facts["dicom_id"], facts["subject"], facts["study_id"], step, facts["view"], tall, wide]
        cells += [facts["date"], facts["time"], step, facts["coded"], "Erect" if facts["erect"] else "Recumbent"]
        rows.append(cells)
    write_csv(out / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, rows)
    split = [
        (item.facts["dicom_id"], item.facts["study_id"], item.facts["subject"], item.facts["part"]) for item in items
    ]
    write_csv(out / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], split)
    (out / "IMAGE_FILENAMES").write_text("".join(f"{item.path}\n" for item in items), encoding="utf-8")
    (out / "README").write_text("Drawn radiographs of nobody, laid out as MIMIC-CXR-JPG 2.1.0.\n", encoding="utf-8")
    _write_surroundings(items, order, out)


def _detector(item: Item) -> tuple[int, int]:
    return ((2544, 3056), (3056, 2544), (2500, 2500))[item.facts["shape"]]


def write_labels(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write two report labellers' tables, a row per study, and the radiologists' labels of some test studies.

    Traps: one study of the training part has no row at all, and one has a row of blanks; neither is "No Finding".
    """
    every = studies(items)
    train = [int(item.facts["study_id"]) for item in every if item.facts["part"] == "train"]
    # The last ones: other traps are planted at the beginning and in the middle.
    no_row, blank = (train[-1], train[-2]) if order.traps and len(train) > 2 else (0, 0)
    for counter, labeller in ((100, "chexpert"), (200, "negbio")):
        rows = []
        for item in every:
            named = int(item.facts["study_id"])
            if named == no_row:
                continue
            rng = item.key.lasting(Draw.TABLE, counter + item.facts["study"])
            cells = label_cells(LABELLED, item.labels, rng)
            rows.append([item.facts["subject"], named, *([""] * len(cells) if named == blank else cells)])
        write_csv(out / f"mimic-cxr-2.0.0-{labeller}.csv.gz", ["subject_id", "study_id", *LABELLED], rows)
    read = [item for item in every if item.facts["part"] == "test"]
    rows = []
    for item in read[: max(2 * len(read) // 3, 1)]:
        rng = item.key.lasting(Draw.TABLE, 300 + item.facts["study"])
        columns = [{"Airspace Opacity": "Lung Opacity"}.get(name, name) for name in TEST_LABELLED]
        rows.append([item.facts["study_id"], *label_cells(columns, item.labels, rng)])
    write_csv(out / "mimic-cxr-2.1.0-test-set-labeled.csv", ["study_id", *TEST_LABELLED], rows)


def _write_surroundings(items: Sequence[Item], order: Order, out: Path) -> None:
    sums = (f"{hashlib.sha256((out / item.path).read_bytes()).hexdigest()} {item.path}\n" for item in items)
    (out / "SHA256SUMS.txt").write_text("".join(sums), encoding="utf-8")
    (out / "LICENSE.txt").write_text("Drawn by cxrdist; do with them what you like.\n", encoding="utf-8")
    if order.traps:
        for folder in (out, out / "files", (out / items[0].path).parent):
            write_index_html(folder)
