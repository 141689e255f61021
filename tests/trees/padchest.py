"""PadChest as it is downloaded."""

from pathlib import Path

from tests.trees.files import picture, table

HEADER = (
    "ImageID ImageDir StudyDate_DICOM StudyID PatientID PatientBirth PatientSex_DICOM ViewPosition_DICOM Projection "
    "MethodProjection Pediatric Modality_DICOM Manufacturer_DICOM PhotometricInterpretation_DICOM "
    "PixelRepresentation_DICOM PixelAspectRatio_DICOM SpatialResolution_DICOM BitsStored_DICOM WindowCenter_DICOM "
    "WindowWidth_DICOM Rows_DICOM Columns_DICOM XRayTubeCurrent_DICOM Exposure_DICOM ExposureInuAs_DICOM ExposureTime "
    "RelativeXRayExposure_DICOM ReportID Report MethodLabel Labels Localizations LabelsLocalizationsBySentence "
    "labelCUIS LocalizationsCUIS"
)
LONG = "21684011136696401281920706111201030714260225"
"""Ids have 44 digits and more: two of them are one float."""

LABELS = {
    # letter: words, projection, what else
    "a": ("['cardiomegaly', ' pneumonia', '']", "PA", {}),
    "b": ("['normal']", "AP_horizontal", {"MethodLabel": "Physician"}),
    "c": ("['normal', 'vertebral degenerative changes']", "AP", {}),
    "d": ("['unchanged']", "PA", {}),
    "e": ("['unchanged', 'pleural effusion']", "PA", {}),
    "f": ("['pericardial effusion', 'pseudonodule', 'subcutaneous emphysema', 'breast mass']", "PA", {}),
    "g": ("['hydropneumothorax', 'laminar atelectasis', 'NSG tube']", "PA", {"MethodLabel": "Physician"}),
    "h": ("['exclude', 'cardiomegaly']", "PA", {}),
    "i": ("['suboptimal study']", "PA", {}),
    "j": ("", "PA", {}),
    "k": ("[]", "PA", {}),
    "l": ("['normal']", "L", {}),
    "m": ("['rib fracture']", "COSTAL", {}),
    "n": ("['normal']", "PA", {}),  # not on disk
    "o": ("['normal', 'unchanged']", "PA", {"PhotometricInterpretation_DICOM": "MONOCHROME1"}),
    "p": ("['reticular interstitial pattern', 'ascendent aortic elongation']", "PA", {"Pediatric": "PED"}),
}
BORN = {"b": "1931.0", "d": "2019", "g": "1920", "p": "2006"}
PATIENTS = {"a": LONG + "3", "b": LONG + "4"}
"""Of the others, each letter is a patient."""


def make(root: Path, *, folders: str = "{dir}") -> int:
    """Write 16 rows and one image in no row, each image in `folders`; return how many there are."""
    rows = []
    for number, (letter, (words, projection, more)) in enumerate(LABELS.items()):
        place = 13 if number % 2 else 0
        cells = {"": str(number), "ImageID": f"{LONG}_{letter}.png", "ImageDir": f"{place}.0" if place else "0"}
        cells |= {"StudyID": f"{LONG}{number:03}", "PatientID": PATIENTS.get(letter, letter), "Pediatric": "No"}
        cells |= {"StudyDate_DICOM": "20140911", "PatientBirth": BORN.get(letter, "1954"), "PatientSex_DICOM": "F"}
        cells |= {"Projection": projection, "Labels": words, "MethodLabel": "RNN_model", "Report": "cardiomegali ."}
        cells |= {"PhotometricInterpretation_DICOM": "MONOCHROME2", "Localizations": "['loc basal']"}
        cells |= {"LabelsLocalizationsBySentence": "[['normal'], ['exclude']]"}
        rows.append(cells | more)
        if letter != "n":
            picture(root / folders.format(dir=place) / f"{LONG}_{letter}.png", sixteen=True)
    table(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", ["", *HEADER.split()], rows)
    picture(root / folders.format(dir=0) / f"{LONG}_z.png", sixteen=True)
    (root / folders.format(dir=0) / ".DS_Store").write_text("junk")
    return len(rows) + 1


TREES = {
    "padchest": make,
    "padchest/images": lambda root: make(root / "PadChest", folders="images/{dir}"),
    "padchest/flat": lambda root: make(root, folders="."),
}
