"""PadChest's words: what it calls what is drawn, and the words that a careless reader takes for something else."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxrdist.phantom.canvas import band, curve
from cxrdist.phantom.devices import device_names
from cxrdist.phantom.people import Draw, Exam
from cxrdist.phantom.scene import Scene

WORDS = {
    "cardiomegaly": ["cardiomegaly"],
    "effusion": ["pleural effusion", "costophrenic angle blunting"],
    "edema": ["pulmonary edema", "hilar congestion", "kerley lines"],
    "consolidation": ["consolidation", "air bronchogram"],
    "pneumonia": ["pneumonia"],
    "bacterial_pneumonia": ["pneumonia"],
    "viral_pneumonia": ["atypical pneumonia"],
    "infiltration": ["infiltrates"],
    "atelectasis": ["laminar atelectasis"],
    "nodule": ["nodule"],
    "mass": ["pulmonary mass"],
    "pneumothorax": ["pneumothorax"],
    "pleural_thickening": ["pleural thickening", "apical pleural thickening"],
    "fibrosis": ["pulmonary fibrosis"],
    "interstitial_lung_disease": ["reticulonodular interstitial pattern"],
    "emphysema": ["emphysema", "COPD signs", "flattened diaphragm"],
    "hernia": ["hiatal hernia"],
    "rib_fracture": ["rib fracture"],
    "clavicle_fracture": ["clavicle fracture"],
    "aortic_enlargement": ["aortic elongation"],
    "enlarged_cardiomediastinum": ["superior mediastinal enlargement"],
    "enlarged_pulmonary_artery": ["pulmonary artery enlargement"],
    "mediastinal_shift": ["mediastinal shift"],
    "calcification": ["calcified granuloma"],
    "tuberculosis": ["tuberculosis"],
    "lung_cavity": ["cavitation"],
    "lung_cyst": ["cyst"],
}
"""Of each finding that can be drawn; those of devices are in `DEVICES`."""

DEVICES = {
    "central_line": "central venous catheter",
    "breathing_tube": "endotracheal tube",
    "stomach_tube": "NSG tube",
    "leads": "external foreign body",
    "pacemaker": "dual chamber device",
    "wires": "suture material",
    "port": "reservoir central venous catheter",
    "chest_drain": "chest drain tube",
}


@dataclass(frozen=True)
class Trap:
    """One odd row."""

    facts: dict[str, Any]
    """What it changes in the facts of the image that gets it."""
    fits: Callable[[set[str]], bool] = field(default=lambda labels: True)
    """Whether an image with these findings can take it."""


TRAPS = (
    Trap({"inverse": True}),
    Trap({"trap": "blank"}),
    Trap({"trap": "pseudonodule"}, lambda labels: not labels & {"nodule", "mass"}),
    Trap({"trap": "empty"}),
    Trap({"projection": "COSTAL"}),
    Trap({"trap": "pericardial effusion"}, lambda labels: "effusion" not in labels),
    Trap({"trap": "exclude"}),
    Trap({"trap": "subcutaneous emphysema"}, lambda labels: "emphysema" not in labels),
    Trap({"trap": "suboptimal study"}),
    Trap({"trap": "unchanged"}),
    Trap({"trap": "empty item"}),
)


def words_of(exam: Exam, trap: str) -> list[str]:
    """Return the words of an image's row; `normal` stands alone."""
    words = [word for name in exam.findings for word in WORDS.get(name, [])]
    words += [DEVICES[name] for name in device_names(exam)]
    if trap == "unchanged":
        return ["unchanged"]  # the report before, which is not here, says what there is
    if trap == "empty item":
        return ["", *(words or ["normal"])]
    if trap in ("exclude", "suboptimal study", *_MARKS):
        words.append(trap)
    return words or ["normal"]


def draw_trap(scene: Scene, trap: str) -> None:
    """Draw what a trap's word says, if it says something that is to be seen."""
    if trap in _MARKS:
        _MARKS[trap](scene, scene.exam.key.passing(Draw.LESION))


def _pseudonodule(scene: Scene, rng: np.random.Generator) -> None:
    """Both nipples: round shadows that are no nodules."""
    for side in (-1, 1):
        at = (side * 8.8 + rng.normal(0, 0.2), 17.0 + rng.normal(0, 0.2))
        scene.tissue += 0.7 * scene.frame.ball(at, (0.5, 0.5))


def _pericardial_effusion(scene: Scene, rng: np.random.Generator) -> None:
    """Fluid around the heart: a broad, heavy bag."""
    bag = scene.frame.blur(scene.frame.mask(scene.shape.heart * (1.12, 1.02)), 0.25)
    scene.fill(bag, 0.55)


def _subcutaneous_emphysema(scene: Scene, rng: np.random.Generator) -> None:
    """Air in streaks outside the ribs."""
    for side in (-1, 1):
        for k in range(4):
            x, y = 15.0 + 0.5 * k, rng.uniform(4, 12)
            streak = curve(np.array([(x, y), (x + rng.normal(0, 0.3), y + 2.5), (x + rng.normal(0, 0.3), y + 5)]))
            scene.tissue -= 1.6 * scene.frame.mask(band(streak * (side, 1), 0.2))


_MARKS = {
    "pseudonodule": _pseudonodule,
    "pericardial effusion": _pericardial_effusion,
    "subcutaneous emphysema": _subcutaneous_emphysema,
}
