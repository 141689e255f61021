"""Who is X-rayed, and how: a patient's lasting anatomy and one exposure's pose and projection.

Everything is drawn from `cxrdist.seeds.stream`, keyed by site, patient and image, so any image can be drawn alone.
"""

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Literal

import numpy as np

from cxrdist.seeds import Purpose, stream

Projection = Literal["PA", "AP", "lateral"]


class Draw(IntEnum):
    """The last counter of a stream: what is drawn.  Part of the reproducibility promise: append, never renumber."""

    PATIENT = 0
    VESSELS = 1
    DISEASE = 2
    POSE = 3
    NOISE = 4
    TABLE = 5
    LESION = 6
    DEVICE = 7


@dataclass(frozen=True)
class Key:
    """Names one image: the seed, the site's code, the patient's and the image's number."""

    seed: int
    site: int
    patient: int
    image: int = 0

    def of_image(self, image: int) -> "Key":
        """Return the key of another image of the same patient."""
        return replace(self, image=image)

    def lasting(self, draw: Draw, *counters: int) -> np.random.Generator:
        """Return a stream that all images of the patient share."""
        return stream(self.seed, Purpose.PHANTOM, self.site, self.patient, int(draw), *counters)

    def passing(self, draw: Draw, *counters: int) -> np.random.Generator:
        """Return a stream of this image alone."""
        return stream(self.seed, Purpose.PHANTOM, self.site, self.patient, int(draw), 1000 + self.image, *counters)


@dataclass(frozen=True)
class Patient:
    """Lasting anatomy; lengths are factors of an average adult's unless a unit is given."""

    sex: Literal["F", "M"]
    age: int
    size: float
    """Height and breadth of the whole body."""
    chest_width: float
    chest_height: float
    habitus: float
    """-1 lean .. +2 obese: thickness of the body and of its wall."""
    heart_ratio: float
    """Cardiothoracic ratio of the healthy heart, below 0.48."""
    heart_turn: float
    """-1 upright and slim .. +1 lying and broad."""
    right_dome: float
    """How much higher the right dome is, cm."""
    rib_pitch: float
    """Distance of two ribs at the spine, cm."""
    rib_slope: float
    scoliosis: float
    """Sideways bow of the spine, cm."""
    aorta: float
    """Radius of the aortic knob, cm."""
    markings: float
    """Strength of the vessels."""


@dataclass(frozen=True)
class Exam:
    """One exposure of a patient with what is to be seen in it."""

    key: Key
    patient: Patient
    projection: Projection
    breath: float
    """-1 shallow .. +1 deep: height of the domes."""
    tilt: float
    """Rotation in the image plane, radians."""
    turn: float
    """Rotation about the long axis: sideways shift of what lies in front, cm."""
    shift: tuple[float, float]
    """Off-centre position, cm."""
    zoom: float
    findings: dict[str, float] = field(default_factory=dict)
    """Strength of each finding that is present, about 0.1 (barely visible) .. 1 (obvious)."""

    def lesion_rng(self, finding: str) -> np.random.Generator:
        """Return the stream that places `finding`: the same place in all images of the patient."""
        return self.key.lasting(Draw.LESION, *finding.encode())


def draw_patient(key: Key, *, age_mean: float = 56.0) -> Patient:
    """Return the anatomy of patient `key.patient`."""
    rng = key.lasting(Draw.PATIENT)
    sex: Literal["F", "M"] = "F" if rng.random() < 0.46 else "M"
    age = int(np.clip(rng.normal(age_mean, 17), 18, 92))
    size = (0.93 if sex == "F" else 1.0) * (1 + 0.035 * rng.standard_normal())
    return Patient(
        sex=sex,
        age=age,
        size=float(np.clip(size, 0.84, 1.1)),
        chest_width=float(np.clip(1 + 0.045 * rng.standard_normal(), 0.9, 1.12)),
        chest_height=float(np.clip(1 + 0.05 * rng.standard_normal(), 0.88, 1.12)),
        habitus=float(np.clip(0.3 + 0.7 * rng.standard_normal(), -1, 2)),
        heart_ratio=float(np.clip(0.435 + 0.0006 * (age - 50) + 0.03 * rng.standard_normal(), 0.37, 0.478)),
        heart_turn=float(rng.uniform(-1, 1)),
        right_dome=float(rng.uniform(0.6, 1.8)),
        rib_pitch=float(2.05 + 0.13 * np.clip(rng.standard_normal(), -2, 2)),
        rib_slope=float(rng.uniform(0.75, 1.3)),
        scoliosis=float(rng.normal(0, 0.35)),
        aorta=float(1.35 + 0.006 * (age - 50) + 0.1 * rng.standard_normal()),
        markings=float(rng.uniform(0.8, 1.2)),
    )


def draw_child(key: Key, months: int) -> Patient:
    """Return the anatomy of patient `key.patient` at an age of `months`, below 12 years.

    The field is set to the child, so its chest fills the picture as an adult's does.  What differs is the shape: a
    short, broad chest with level ribs, and a heart that takes up to 0.54 of it; most so in the youngest.
    """
    rng = key.lasting(Draw.PATIENT, 1)
    adult = draw_patient(key)
    young = 1 - min(months, 143) / 144  # 1 newborn .. 0 at 12 years
    return replace(
        adult,
        age=months // 12,
        size=float(np.clip(0.97 + 0.03 * rng.standard_normal(), 0.9, 1.05)),
        chest_width=float(np.clip(0.98 + 0.03 * rng.standard_normal(), 0.9, 1.06)),
        chest_height=float(np.clip(0.95 - 0.15 * young + 0.025 * rng.standard_normal(), 0.76, 1.0)),
        habitus=float(np.clip(-0.3 + 0.35 * rng.standard_normal(), -1, 0.6)),
        heart_ratio=float(np.clip(0.46 + 0.06 * young + 0.015 * rng.standard_normal(), 0.43, 0.54)),
        rib_slope=float(adult.rib_slope * (1 - 0.45 * young)),
        scoliosis=0.4 * adult.scoliosis,
        aorta=float(1.15 - 0.25 * young + 0.05 * rng.standard_normal()),
    )


def draw_exam(key: Key, patient: Patient, projection: Projection, findings: dict[str, float]) -> Exam:
    """Return image `key.image` of `patient`; AP films are taken in bed: shallower, more turned, less well centred."""
    rng = key.passing(Draw.POSE)
    bed = projection == "AP"
    spread = 1.8 if bed else 1.0
    return Exam(
        key=key,
        patient=patient,
        projection=projection,
        breath=float(np.clip(rng.normal(-0.75 if bed else 0.25, 0.35), -1.5, 1)),
        tilt=float(rng.normal(0, 0.018 * spread)),
        turn=float(rng.normal(0, 0.35 * spread)),
        shift=(float(rng.normal(0, 0.7 * spread)), float(rng.normal(0, 0.6 * spread))),
        zoom=float(np.clip(1 + 0.03 * rng.standard_normal() + (0.03 if bed else 0), 0.92, 1.12)),
        findings=findings,
    )
