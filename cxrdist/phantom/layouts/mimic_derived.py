"""REFLACX and the edema severity grades: tables that name images of MIMIC-CXR, with the images that they name.

Both lie as a recursive download from PhysioNet leaves them: one folder per project, side by side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cxrdist.phantom.layouts import mimic, mimic_tables
from cxrdist.phantom.layouts.base import Item, Layout, Order
from cxrdist.phantom.layouts.files import write_csv, write_index_html
from cxrdist.phantom.people import Draw

IMAGES = "mimic-cxr/2.0.0"
"""Where the projects' tables look for the images."""

REFLACX = "reflacx-xray-localization/1.0.0"
PHASE_1 = {
    "Airway wall thickening": None,
    "Atelectasis": "atelectasis",
    "Consolidation": "consolidation",
    "Emphysema": "emphysema",
    "Enlarged cardiac silhouette": "cardiomegaly",
    "Fibrosis": "fibrosis",
    "Fracture": "fracture",
    "Groundglass opacity": None,
    "Mass": "mass",
    "Nodule": "nodule",
    "Pleural effusion": "effusion",
    "Pleural thickening": "pleural_thickening",
    "Pneumothorax": "pneumothorax",
    "Pulmonary edema": "edema",
    "Wide mediastinum": "enlarged_cardiomediastinum",
}
PHASES_2_3 = {
    "Abnormal mediastinal contour": "enlarged_cardiomediastinum",
    "Acute fracture": "fracture",
    "Atelectasis": "atelectasis",
    "Consolidation": "consolidation",
    "Enlarged cardiac silhouette": "cardiomegaly",
    "Enlarged hilum": "enlarged_pulmonary_artery",
    "Groundglass opacity": None,
    "Hiatal hernia": "hernia",
    "High lung volume / emphysema": "emphysema",
    "Interstitial lung disease": "interstitial_lung_disease",
    "Lung nodule or mass": "nodule_or_mass",
    "Pleural abnormality": "pleural_abnormality",
    "Pneumothorax": "pneumothorax",
    "Pulmonary edema": "edema",
}
"""Certainties by column, with the canonical finding that each stands for, where one is drawn."""

EDEMA = "mimic-cxr-pe-severity/1.0.1"


def plan(order: Order) -> list[Item]:
    """Return the frontal images of MIMIC-CXR's plan, under the folder of its project."""
    frontal = [item for item in mimic.plan(order, ".dcm") if item.projection != "lateral"]
    return [replace(item, path=f"{IMAGES}/{item.path}") for item in frontal]


def write_reflacx(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write a table per phase: five readings of every image in the first two, one in the third."""
    rows: dict[int, list[list[object]]] = {1: [], 2: [], 3: []}
    for number, item in enumerate(items):
        phase = (1, 2, 3, 3)[number % 4]
        rows[phase] += list(_readings(item, phase, order))
    for phase, readings in rows.items():
        names = PHASE_1 if phase == 1 else PHASES_2_3
        quality = ["Quality issue"] if phase == 1 else []
        header = ["id", "split", "eye_tracking_data_discarded", "image", "dicom_id", "subject_id"]
        header += ["image_size_x", "image_size_y", *names, *quality, "Support devices", "Other"]
        write_csv(out / REFLACX / "main_data" / f"metadata_phase_{phase}.csv", header, readings)
    _write_images_list(items, out)
    if order.traps:
        write_index_html(out / REFLACX / "main_data")


def _readings(item: Item, phase: int, order: Order) -> Iterator[list[object]]:
    """Yield the rows of an image; of five readers, one misses what the others see."""
    rng = item.key.passing(Draw.TABLE, 4)
    facts, labels = item.facts, item.labels
    names = PHASE_1 if phase == 1 else PHASES_2_3
    readers = 1 if phase == 3 else 5
    blind = int(rng.integers(0, readers)) if readers > 1 else -1
    tall, wide = mimic.SHAPES[facts["shape"]]
    for reader in range(readers):
        sure = rng.choice([4, 5, 5], len(names)).tolist()
        low = rng.choice([1, 2, 3], len(names)).tolist()  # 1: unlikely, 2: less likely, 3: possibly
        luck = rng.random(len(names))
        cells = []
        for finding, certain, doubtful, chance in zip(names.values(), sure, low, luck, strict=True):
            if finding in labels:
                cells.append(doubtful if reader == blind else certain)
            else:
                cells.append(doubtful if reader == blind and chance < 0.06 else 0)
        named = f"P{phase}{reader + 1:02d}R{10_000 + int(facts['study_id']) % 90_000 + item.key.image:06d}"
        discarded = phase < 3 and luck[0] < 0.03
        size = [round(order.size * wide), round(order.size * tall)]
        first = [named, facts["part"], discarded, f"physionet.org/files/{item.path}", facts["dicom_id"]]
        quality = [bool(luck[1] < 0.05)] if phase == 1 else []
        yield [*first, facts["subject"], *size, *cells, *quality, "support_devices" in labels, ""]


def write_edema(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the grades of studies read off reports, by rules and some by experts, and of the test images by consensus.

    0 none, 1 vascular congestion, 2 interstitial, 3 alveolar edema: how much of it is drawn.  The rules are sometimes a
    grade too high.
    """
    by_rules, by_experts, by_consensus = [], [], []
    for number, item in enumerate(mimic_tables.studies(items)):
        study = [item.facts["subject"], item.facts["study_id"]]
        if item.facts["part"] == "test":
            continue
        grade = edema_grade(item)
        luck = item.key.lasting(Draw.TABLE, 400 + item.facts["study"]).random()
        by_rules.append([*study, 3 if grade == 2 and luck < 0.15 else grade])
        by_experts += [[*study, grade]] if number % 4 == 0 else []
    for item in items:
        if item.facts["part"] == "test":
            ids = [item.facts["subject"], item.facts["study_id"], item.facts["dicom_id"]]
            by_consensus.append([*ids, edema_grade(item)])
    header = ["subject_id", "study_id", "edema_severity"]
    write_csv(out / EDEMA / "regex_report_edema_severity.csv", header, by_rules)
    write_csv(out / EDEMA / "expert_report_edema_severity.csv", header, by_experts)
    write_csv(out / EDEMA / "consensus_image_edema_severity.csv", [*header[:2], "dicom_id", header[2]], by_consensus)
    _write_images_list(items, out)
    if order.traps:
        write_index_html(out / EDEMA)


def edema_grade(item: Item) -> int:
    """Return the grade of what is drawn; what is barely visible is congestion."""
    strength = item.findings.get("edema")
    return 0 if strength is None else 1 + int(strength > 0.47) + int(strength > 0.56)


def _write_images_list(items: Sequence[Item], out: Path) -> None:
    """Write the list that comes with the images: grades of studies find their images there."""
    rows = [
        (item.facts["subject"], item.facts["study_id"], item.facts["dicom_id"], item.path.removeprefix(f"{IMAGES}/"))
        for item in items
    ]
    write_csv(out / IMAGES / "cxr-record-list.csv.gz", ["subject_id", "study_id", "dicom_id", "path"], rows)


REFLACX_LAYOUT = Layout("reflacx", mimic.CODE, 512, mimic.PREVALENCE, 0.3, 0.2, plan, mimic.write_dicom, write_reflacx)
_EDEMA_PREVALENCE = {**mimic.PREVALENCE, "edema": 0.45}
EDEMA_LAYOUT = Layout(
    "edema_severity", mimic.CODE, 512, _EDEMA_PREVALENCE, 0.2, 0.2, plan, mimic.write_dicom, write_edema
)
