"""What the layouts share: the plan of a data set, and the picture of a planned image."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cxrdist.phantom.acquisition import Beam
from cxrdist.phantom.disease import draw_findings, implied
from cxrdist.phantom.draw import draw_exam_picture
from cxrdist.phantom.people import Draw, Exam, Key, Patient, Projection, draw_exam, draw_patient
from cxrdist.phantom.scene import Scene


@dataclass(frozen=True)
class Order:
    """What a caller asked for; a data set is a pure function of its layout's name and this."""

    patients: int
    seed: int
    difficulty: float
    size: int
    """Short side of the pictures, pixels."""
    prevalence: Mapping[str, float]
    """Share of images per drawn finding, canonical names."""
    healthy: float
    """Share of the patients and of the studies that the draw of findings leaves out."""
    held_out: float
    """Share of the patients in the official test part."""
    traps: bool


@dataclass(frozen=True)
class Item:
    """One image to be drawn."""

    path: str
    """Relative to the data set's root."""
    key: Key
    projection: Projection
    findings: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the layout's table says of the image besides its findings, and what its writer needs to know."""
    seen: frozenset[str] = frozenset()
    """Findings that are no drawing of their own: the place of a line's tip, a disease that is told by what is drawn."""

    @property
    def labels(self) -> set[str]:
        """What is to be seen in the image, broader findings included."""
        return implied({*self.findings, *self.seen})

    @property
    def held_out(self) -> bool:
        """Whether the image is of the official test part: of train, validate and test, or of train and valid."""
        return self.facts.get("part") in ("valid", "test") or bool(self.facts.get("test"))


Writer = Callable[[Item, Order, Path], None]


@dataclass(frozen=True)
class Layout:
    """A data set's shape: `plan` says what there is, `write_image` draws one file, `write_tables` writes the rest."""

    name: str
    code: int
    """Counter of the site in the random streams."""
    size: int
    """Default short side, pixels."""
    prevalence: Mapping[str, float]
    healthy: float
    held_out: float
    plan: Callable[[Order], list[Item]]
    write_image: Writer
    write_tables: Callable[[Sequence[Item], Order, Path], None]


def patients_of(order: Order, code: int) -> Iterator[tuple[Key, np.random.Generator]]:
    """Yield each patient's key, and the stream of what the tables say of him."""
    for patient in range(order.patients):
        key = Key(order.seed, code, patient)
        yield key, key.lasting(Draw.TABLE)


def patient_of(item: Item, *, age_mean: float = 56.0) -> Patient:
    """Return the patient of an item."""
    return draw_patient(item.key, age_mean=age_mean)


def study_findings(key: Key, study: int, order: Order, *, sicker: float) -> dict[str, float]:
    """Return what study number `study` of a patient shows."""
    lasting = key.lasting(Draw.DISEASE)
    passing = key.lasting(Draw.DISEASE, 1 + study)
    return draw_findings(
        lasting, passing, order.prevalence, difficulty=order.difficulty, healthy=order.healthy, sicker=sicker
    )


def held_out_patients(order: Order, code: int) -> set[int]:
    """Return the numbers of the patients in the official test part: at least one, and at least one not."""
    count = min(max(round(order.held_out * order.patients), 1), max(order.patients - 1, 1))
    rng = Key(order.seed, code, 0).lasting(Draw.TABLE, 1)
    return set(rng.permutation(order.patients)[:count].tolist())


def three_parts(order: Order, code: int, *, validating: int) -> list[str]:
    """Return the official part of each patient: ``test``, of the others about one in `validating` ``validate``."""
    test = held_out_patients(order, code)
    others = [patient for patient in range(order.patients) if patient not in test]
    step = max(len(others) // max(order.patients // validating, 1), 1)
    validate = set(others[::step]) if len(others) > 2 else set()
    return [
        "test" if patient in test else "validate" if patient in validate else "train"
        for patient in range(order.patients)
    ]


def exam_of(item: Item, *, age_mean: float = 56.0, patient: Patient | None = None) -> Exam:
    """Return the exposure of an item; `patient` where it is another than `patient_of` gives (a child)."""
    patient = patient or patient_of(item, age_mean=age_mean)
    return draw_exam(item.key, patient, item.projection, dict(item.findings))


def site_picture(
    item: Item,
    beam: Beam,
    shape: tuple[int, int],
    *,
    age_mean: float = 56.0,
    patient: Patient | None = None,
    extra: Callable[[Scene], None] | None = None,
) -> np.ndarray:
    """Return the display picture of an item, before its site's processing; for `extra` see `draw_exam_picture`."""
    return draw_exam_picture(exam_of(item, age_mean=age_mean, patient=patient), beam, shape=shape, extra=extra)
