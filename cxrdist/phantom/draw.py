"""One exam -> one display picture, at any size."""

from collections.abc import Callable

import numpy as np

from cxrdist.phantom.acquisition import Beam, expose
from cxrdist.phantom.canvas import Frame
from cxrdist.phantom.devices import add_devices
from cxrdist.phantom.findings import add_findings
from cxrdist.phantom.lateral import lateral_water
from cxrdist.phantom.people import Draw, Exam
from cxrdist.phantom.scene import Scene, frontal_scene

FIELD_CM = 35.0
"""Short side of the detector."""


def frame_of(exam: Exam, shape: tuple[int, int]) -> Frame:
    """Return the pixel frame of `exam` for a picture of `shape` (rows, columns)."""
    rows, columns = shape
    scale = min(rows, columns) / FIELD_CM * exam.patient.size * exam.zoom
    # In a tall picture more abdomen is seen, not more air above the shoulders.
    extra = (rows / min(rows, columns) - 1) * FIELD_CM * 0.25
    return Frame(rows, columns, scale, exam.tilt, (exam.shift[0], 12.6 + extra + exam.shift[1]))


def draw_exam_picture(
    exam: Exam, beam: Beam, *, shape: tuple[int, int], extra: Callable[[Scene], None] | None = None
) -> np.ndarray:
    """Return the (rows, columns) float32 picture of `exam` in [0, 1], bright = dense, before a site's processing.

    `extra` may draw into a frontal scene what no finding's name says, such as a line with its tip at a given place.
    """
    frame = frame_of(exam, shape)
    if exam.projection == "lateral":
        water = lateral_water(frame, exam)
    else:
        scene = frontal_scene(frame, exam)
        add_findings(scene)
        add_devices(scene)
        if extra is not None:
            extra(scene)
        water = scene.water()
    return expose(frame, frame.blur(water, 0.05), beam, exam.key.passing(Draw.NOISE))
