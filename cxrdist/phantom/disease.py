"""Which findings an image shows: prevalences, a few correlations, and the strength that `difficulty` leaves."""

from collections.abc import Mapping

import numpy as np

LASTING = frozenset(
    {
        *("cardiomegaly", "emphysema", "fibrosis", "pleural_thickening", "calcification", "aortic_enlargement"),
        *("hernia", "mass", "nodule", "interstitial_lung_disease", "lung_cyst", "tuberculosis"),
        *("enlarged_pulmonary_artery",),
    }
)
"""Findings that all images of a patient share; the others come and go between studies."""

DRAWN = (
    *("cardiomegaly", "edema", "effusion", "pneumothorax", "nodule", "mass", "pneumonia", "consolidation"),
    *("atelectasis", "infiltration", "emphysema", "fibrosis", "pleural_thickening", "hernia", "rib_fracture"),
    *("clavicle_fracture", "support_devices", "aortic_enlargement", "enlarged_cardiomediastinum"),
    *("mediastinal_shift", "calcification", "enlarged_pulmonary_artery", "interstitial_lung_disease"),
    *("lung_cavity", "lung_cyst", "tuberculosis"),
    *("bacterial_pneumonia", "viral_pneumonia"),
)
"""Every finding that can be drawn, causes before effects; canonical names.  The broader ones derive from these.

Part of the reproducibility promise: append, never reorder.
"""

_FIRST = 26
"""So many of `DRAWN` take their numbers from a stream before anything else does: a later name moves no other's draw."""

OPACITIES = (
    *("consolidation", "atelectasis", "edema", "pneumonia", "infiltration", "nodule", "mass", "tuberculosis"),
    *("lung_cavity",),
)
"""What the broader finding `lung_opacity` stands for."""

LINES = (
    *("ett_abnormal", "ett_borderline", "ett_normal"),
    *("ngt_abnormal", "ngt_borderline", "ngt_incompletely_imaged", "ngt_normal"),
    *("cvc_abnormal", "cvc_borderline", "cvc_normal", "swan_ganz_catheter"),
)
"""Tubes and lines by the place of their tip: devices, not diseases.  `lines` draws them."""

_RAISED = {
    # given this finding, the odds of those are multiplied
    "cardiomegaly": {"edema": 2.5, "effusion": 1.7, "aortic_enlargement": 1.6},
    "edema": {"effusion": 2.0},
    "effusion": {"atelectasis": 2.0, "mediastinal_shift": 2.0},
    "pneumonia": {"consolidation": 1.5},
    "pneumothorax": {"support_devices": 2.5, "rib_fracture": 2.5},
}
_EXCLUDED = (
    *(("emphysema", "edema"), ("tuberculosis", "edema"), ("emphysema", "interstitial_lung_disease")),
    ("bacterial_pneumonia", "viral_pneumonia"),
)


def draw_findings(
    lasting: np.random.Generator,
    passing: np.random.Generator,
    prevalence: Mapping[str, float],
    *,
    difficulty: float,
    healthy: float = 0.0,
    sicker: float = 1.0,
) -> dict[str, float]:
    """Return ``{finding: strength}`` of the findings present.

    Args:
        lasting: Stream of the patient, for chronic findings.
        passing: Stream of the study, for acute ones.
        prevalence: Share of the images of a site in which a finding is drawn.
        difficulty: 0 (obvious) .. 1 (barely visible).
        healthy: Share of the patients without chronic, and of the studies without acute findings.
        sicker: Factor on the odds of acute findings; above 1 for patients in bed.
    """
    # One number per finding is always drawn, so leaving out a finding moves no other.
    chronic, acute = lasting.random((2, _FIRST)), passing.random((2, _FIRST))
    well = lasting.random(), passing.random()
    more = len(DRAWN) - _FIRST
    chronic, acute = np.hstack([chronic, lasting.random((2, more))]), np.hstack([acute, passing.random((2, more))])
    present: dict[str, float] = {}
    for k, name in enumerate(DRAWN):
        share = prevalence.get(name, 0.0)
        if share <= 0:
            continue
        if (well[0] if name in LASTING else well[1]) < healthy:
            continue
        share = min(share / (1 - healthy), 0.95)
        odds = share / (1 - share) * (1.0 if name in LASTING else sicker)
        for cause, effects in _RAISED.items():
            if cause in present and name in effects:
                odds *= effects[name]
        draws = chronic if name in LASTING else acute
        barred = any(name in pair and (set(pair) - {name}) & present.keys() for pair in _EXCLUDED)
        if draws[0, k] < odds / (1 + odds) and not barred:
            present[name] = strength(difficulty, draws[1, k])
    return present


def strength(difficulty: float, luck: float) -> float:
    """Return the conspicuity of one case, about 0.05 .. 1.1; `luck` in [0, 1] spreads the cases of one difficulty."""
    return float(max(1.0 - 0.85 * difficulty, 0.05) * (0.75 + 0.35 * luck))


_BROADER = (
    # any of these implies that; in the order of the chain
    (LINES, "support_devices"),
    (("bacterial_pneumonia", "viral_pneumonia"), "pneumonia"),
    (OPACITIES, "lung_opacity"),
    (("edema",), "congestion"),
    (("aortic_enlargement",), "aortic_elongation"),
    (("enlarged_pulmonary_artery",), "enlarged_hilum"),
    (("nodule", "mass"), "nodule_or_mass"),
    (("nodule", "mass", "lung_cavity", "lung_cyst"), "lung_lesion"),
    (("rib_fracture", "clavicle_fracture"), "fracture"),
    (("pleural_thickening",), "pleural_other"),
    (("effusion", "pleural_thickening"), "pleural_abnormality"),
    (("emphysema",), "copd"),
    (("mass",), "lung_tumor"),
)


def implied(findings: Mapping[str, float] | set[str]) -> set[str]:
    """Return the present findings with the broader ones that they imply, canonical names."""
    names = set(findings)
    for causes, broader in _BROADER:
        if not names.isdisjoint(causes):
            names.add(broader)
    if not names - {"support_devices", *LINES}:
        names.add("no_finding")
    return names
