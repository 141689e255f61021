"""OpenI (Indiana University): an XML report per study with MeSH headings, PNG, and the same images as DICOM.

Reports, PNG and DICOM are three downloads, here in three folders.  The reports name no patient and no projection; the
DICOM headers name both, not always and not always well.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

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
from cxrdist.phantom.layouts.dicom_file import (
    COMPUTED_RADIOGRAPHY,
    DIGITAL_XRAY,
    add_whole_window,
    new_uid,
    pixel_dataset,
    save_dicom,
    stored_values,
)
from cxrdist.phantom.layouts.files import eight_bit, write_index_html, write_picture
from cxrdist.phantom.people import Draw, Exam, Projection
from cxrdist.phantom.shapes import affected_sides

CODE = 14
AGE_MEAN = 50.0
PNG, DCM, REPORTS = "NLMCXR_png", "NLMCXR_dcm", "NLMCXR_reports/ecgen-radiology"
HEADINGS = {
    "cardiomegaly": "Cardiomegaly/mild",
    "edema": "Pulmonary Edema/bilateral",
    "effusion": "Pleural Effusion/{side}/small",
    "pneumothorax": "Pneumothorax/{side}",
    "nodule": "Nodule/lung",
    "mass": "Mass/lung",
    "pneumonia": "Pneumonia/lung/{side}",
    "consolidation": "Consolidation/lung/{side}",
    "atelectasis": "Pulmonary Atelectasis/base/{side}",
    "infiltration": "Infiltrate/lung/bilateral",
    "emphysema": "Pulmonary Emphysema",
    "fibrosis": "Cicatrix/lung/base/bilateral",
    "pleural_thickening": "Thickening/pleura/{side}",
    "hernia": "Hernia, Hiatal",
    "rib_fracture": "Fractures, Bone/ribs",
    "clavicle_fracture": "Fractures, Bone/clavicle",
    "support_devices": "Catheters, Indwelling",
    "aortic_enlargement": "Aorta, Thoracic/enlarged",
    "enlarged_cardiomediastinum": "Mediastinum/enlarged",
    "mediastinal_shift": "Mediastinum/shift",
    "calcification": "Calcinosis/lung",
    "enlarged_pulmonary_artery": "Pulmonary Artery/enlarged",
    "interstitial_lung_disease": "Lung Diseases, Interstitial",
    "lung_cavity": "Cavitation/lung",
    "lung_cyst": "Cysts/lung",
    "tuberculosis": "Tuberculosis/lung/upper lobe/{side}",
    "bacterial_pneumonia": "Pneumonia/lung/{side}",
    "viral_pneumonia": "Pneumonia/lung/bilateral",
}
"""The indexers' heading of each drawn finding, with the qualifiers behind it."""

BROADER = {
    "lung_opacity": "Opacity/lung",
    "copd": "Pulmonary Disease, Chronic Obstructive",
    "congestion": "Pulmonary Congestion",
}
"""Headings of what the drawn findings imply."""

SIDED = {"effusion": 0.3, "pneumothorax": 0.0, "pneumonia": 0.4, "consolidation": 0.0, "atelectasis": 0.35}
SIDED |= {"pleural_thickening": 0.4, "tuberculosis": 0.35, "bacterial_pneumonia": 0.0}
"""Findings with a side, and the drawing's chance of two."""

DRAWN_AS = {"bacterial_pneumonia": "consolidation"}
"""Findings that take their side from another's stream."""

PREVALENCE = {
    **{"cardiomegaly": 0.12, "effusion": 0.08, "atelectasis": 0.12, "edema": 0.04, "nodule": 0.07, "mass": 0.03},
    **{"calcification": 0.1, "emphysema": 0.06, "fibrosis": 0.08, "pneumothorax": 0.04, "hernia": 0.03},
    **{"rib_fracture": 0.04, "consolidation": 0.04, "infiltration": 0.05, "pneumonia": 0.05, "support_devices": 0.07},
}
VIEWS: dict[Projection, tuple[str, ...]] = {
    "PA": ("PA", "PA", "PA", "", "PA"),
    "AP": ("AP", "AP", ""),
    "lateral": ("LL", "", "LATERAL", "LL", "RL", "LARGE LATERAL"),
}
"""What a header's View Position says of a projection, in turn; empty: the element is missing."""
TERMS = {"No Indexing": "unindexed", "Technical Quality of Image Unsatisfactory ": "poor"}


def plan(order: Order) -> list[Item]:
    """Return the images: one report per patient with one to five images, mostly a frontal and a lateral."""
    items = []
    number = 0
    for key, rng in patients_of(order, CODE):
        patient = key.patient
        number += 2 if rng.random() < 0.03 and number else 1  # the numbers have gaps
        bed = rng.random() < 0.12
        findings = study_findings(key, 0, order, sicker=1.5 if bed else 0.9)
        kind = ("unindexed", "poor")[patient % 2] if order.traps and patient % 14 in (5, 12) else "indexed"
        frontal: Projection = "AP" if bed else "PA"
        extra = int(rng.random() < 0.08) + 2 * int(order.traps and patient == 7)
        shown: list[Projection] = [frontal] if bed or rng.random() < 0.1 else [frontal, "lateral"]
        shown += ["lateral" if k % 2 else frontal for k in range(extra)]
        session = int(rng.integers(1, 3000))
        for image, projection in enumerate(shown):
            stem = f"IM-{session:04d}-{(3001 if number == 1 else 1001) + 1000 * image}"
            if order.traps and patient % 11 == 3:
                stem += f"-{image + 1:04d}"  # a third number
            if order.traps and number == 1:
                stem = "1_" + stem  # report 1 repeats its number
            # The DICOM file of an image begins with the report's number, whether or not its id repeats it.
            path = f"{DCM}/{number}/{number}_{stem.removeprefix('1_')}.dcm"
            facts = {"number": number, "kind": kind, "view": VIEWS[projection], "also": f"{PNG}/CXR{number}_{stem}.png"}
            items.append(Item(path, key.of_image(image), projection, findings, facts))
    return items


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one image as DICOM and as PNG."""
    rng = item.key.passing(Draw.TABLE)
    poor = item.facts["kind"] == "poor"
    beam = Beam(
        photons=1e4 if poor else rng.uniform(2e6, 5e6),
        scatter=1.6 if poor else rng.uniform(0.25, 0.45),
        gamma=rng.uniform(0.85, 1.1),
    )
    long = round(order.size * rng.uniform(1.0, 1.25))
    shape = (long, order.size) if rng.random() < 0.6 or item.projection == "lateral" else (order.size, long)
    grey = site_picture(item, beam, shape, age_mean=AGE_MEAN)
    if item.projection != "lateral" and rng.random() < 0.7:
        stamp(grey, "L", (rng.uniform(0.86, 0.91), rng.uniform(0.03, 0.1)), 0.05)
    png = path.parents[2] / str(item.facts["also"])
    png.parent.mkdir(parents=True, exist_ok=True)
    write_picture(png, eight_bit(grey))
    _write_dicom(item, grey, path, rng)


def _write_dicom(item: Item, grey: np.ndarray, path: Path, rng: np.random.Generator) -> None:
    """Write the file with what the real headers still hold: a name (here an obvious phantom's), dates, an accession."""
    bits, inverse, computed = int(rng.choice([10, 12, 12, 14, 15])), rng.random() < 0.48, rng.random() < 0.4
    sop_class = COMPUTED_RADIOGRAPHY if computed else DIGITAL_XRAY
    stored = stored_values(grey, bits, inverse=inverse, low=rng.uniform(0, 0.05), high=rng.uniform(0.9, 1))
    uid, number, patient = new_uid(rng), item.facts["number"], patient_of(item, age_mean=AGE_MEAN)
    ds = pixel_dataset(stored, bits, inverse=inverse, uid=uid, sop_class=sop_class, syntax="explicit")
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = new_uid(item.key.lasting(Draw.TABLE, 2)), new_uid(rng)
    ds.PatientName, ds.PatientID = f"PHANTOM^{number}", str(number)
    ds.PatientBirthDate, ds.PatientSex = f"{2010 - patient.age}0101", patient.sex
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20100703", "120000", f"PH{number:06d}"
    ds.StudyID, ds.ReferringPhysicianName, ds.InstitutionName = str(number), "DRAWN^BY^NOBODY", "PHANTOM GENERAL"
    ds.Modality, ds.Manufacturer, ds.BodyPartExamined = "CR" if computed else "DX", "Phantom Devices", "CHEST"
    view = item.facts["view"][(item.key.patient + item.key.image) % len(item.facts["view"])]
    if view:
        ds.ViewPosition = view
    ds.RescaleIntercept, ds.RescaleSlope = "0", "1"
    ds.RescaleType = str(rng.choice(["LOG_E REL", "US", "P-VALUES"]))
    if rng.random() < 0.6:
        ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    if rng.random() < 0.7:
        add_whole_window(ds, bits)
    if rng.random() < 0.5:
        ds.BurnedInAnnotation = "NO"
    spacing = f"{350.0 / min(stored.shape):.4f}"
    ds.ImagerPixelSpacing = [spacing, spacing]
    save_dicom(ds, path)


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the reports; as traps, two of them name no image."""
    folder = out / REPORTS
    folder.mkdir(parents=True)
    studies: dict[int, list[Item]] = {}
    for item in items:
        studies.setdefault(item.facts["number"], []).append(item)
    for number, images in studies.items():
        major, automatic = _headings(images[0])
        names = [Path(str(item.facts["also"])).stem for item in images]
        (folder / f"{number}.xml").write_text(_report(number, major, automatic, names), encoding="utf-8")
    if order.traps:
        for number in (max(studies) + 1, max(studies) + 3):
            (folder / f"{number}.xml").write_text(_report(number, ["normal"], [], []), encoding="utf-8")
        write_index_html(out / PNG)


def _headings(item: Item) -> tuple[list[str], list[str]]:
    """Return the major headings, by people, and the automatic ones, by a program."""
    term = next((term for term, kind in TERMS.items() if kind == item.facts["kind"]), None)
    if term is not None:
        return [term], []
    exam = exam_of(item, age_mean=AGE_MEAN)
    major = [HEADINGS[name].format(side=_side(exam, name)) for name in HEADINGS if name in item.findings]
    major += [heading for name, heading in BROADER.items() if name in item.labels]
    return list(dict.fromkeys(major)) or ["normal"], [heading.split("/")[0].lower() for heading in major]


def _side(exam: Exam, finding: str) -> str:
    if finding not in SIDED:
        return ""
    sides = affected_sides(exam, DRAWN_AS.get(finding, finding), both=SIDED[finding])
    return "bilateral" if len(sides) == 2 else "right" if sides[0] < 0 else "left"


def _report(number: int, major: list[str], automatic: list[str], images: list[str]) -> str:
    told = "normal chest" if major == ["normal"] else "; ".join(major)
    texts = {"COMPARISON": "None.", "INDICATION": "XXXX-year-old phantom", "FINDINGS": told, "IMPRESSION": told}
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<eCitation>", '   <meta type="rr"/>']
    lines += [f'   <uId id="CXR{number}"/>', f'   <pmcId id="{number}"/>', "   <docSource>CXR</docSource>"]
    lines += [f'   <IUXRId id="{number}"/>', "   <licenseType>open-access</licenseType>", "   <subset>CXR</subset>"]
    lines += ["   <MedlineCitation>", "      <Article>", "         <Abstract>"]
    lines += [
        f'            <AbstractText Label="{label}">{escape(text)}</AbstractText>' for label, text in texts.items()
    ]
    lines += ["         </Abstract>", "      </Article>", "   </MedlineCitation>", "   <MeSH>"]
    lines += [f"      <major>{escape(heading)}</major>" for heading in major]
    lines += [f"      <automatic>{escape(heading)}</automatic>" for heading in automatic]
    lines += ["   </MeSH>"]
    for figure, name in enumerate(images, 1):
        lines += [f"   <parentImage id={quoteattr(name)}>", f"      <figureId>F{figure}</figureId>"]
        lines += ["      <caption>Drawn chest</caption>", '      <panel type="single">']
        lines += [f"         <url>/phantom/{name}.jpg</url>", "      </panel>", "   </parentImage>"]
    return "\n".join([*lines, "</eCitation>"]) + "\n"


LAYOUT = Layout("openi", CODE, 512, PREVALENCE, 0.35, 0.0, plan, write_image, write_tables)
