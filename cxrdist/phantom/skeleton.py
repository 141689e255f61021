"""Bones of a frontal chest as a map of extra attenuation, in cm of water that would attenuate as much."""

import numpy as np

from cxrdist.phantom.canvas import Frame, band, curve, ellipse, moved
from cxrdist.phantom.people import Exam
from cxrdist.phantom.shapes import Shape


def frontal_bones(frame: Frame, exam: Exam, shape: Shape) -> np.ndarray:
    """Return the (H, W) map of ribs, clavicles, scapulae, humeri and spine."""
    bones = _spine(frame, exam)
    bones += _ribs(frame, exam, shape)
    bones += _girdle(frame, exam, shape)
    return bones


def rib_lines(exam: Exam, shape: Shape, side: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the centre lines of the posterior and the anterior ribs of one side."""
    patient = exam.patient
    pitch, slope = patient.rib_pitch * patient.chest_height, patient.rib_slope
    posterior, anterior = [], []
    for number in range(2, 11):
        y = -2.2 + pitch * number - 0.15 * max(0, 5 - number)
        drop = (2.1 + 0.27 * number) * slope
        if number == 2:
            drop *= 0.8
        outer = float(shape.half_width(y + drop)) + 0.25
        line = [(1.9, y + 0.1), (0.36 * outer, y - 0.55), (0.66 * outer, y - 0.2 + 0.1 * drop)]
        line += [(0.9 * outer, y + 0.52 * drop), (outer, y + drop)]
        if number > 7:  # the lower ribs turn back towards the midline, out of the picture's plane
            line += [(0.95 * outer, y + drop + 1.7), (0.81 * outer, y + drop + 3.3), (0.68 * outer, y + drop + 4.3)]
        posterior.append(curve(np.array(line)) * (side, 1))
        if number <= 7:
            end = (0.42 + 0.012 * number) * outer
            front = [(outer, y + drop), (0.97 * outer, y + drop + 1.5), (0.78 * outer, y + drop + 3.1 * slope)]
            front += [(0.5 * (0.78 * outer + end), y + drop + 4.0 * slope), (end, y + drop + 4.2 * slope)]
            anterior.append(curve(np.array(front)) * (side, 1) + (0.5 * shape.sway, 0))
    return posterior, anterior


def _ribs(frame: Frame, exam: Exam, shape: Shape) -> np.ndarray:
    age = exam.patient.age
    cortex, marrow, front = [], [], []
    calcified = []
    for side in (-1, 1):
        posterior, anterior = rib_lines(exam, shape, side)
        for number, line in enumerate(posterior):
            half = 0.5 + 0.015 * number
            for piece in broken(exam, line, side, number):
                # The lower ribs end freely, in a point.
                taper = np.interp(np.arange(len(piece)), [0, 32, 56], [half, half, 0.12]) if number > 5 else half
                cortex.append(band(piece, taper))
                marrow.append(band(piece, taper * 0.62))
        for line in anterior:
            front.append(band(line, np.linspace(0.5, 0.66, len(line))))
            if age > 45:  # calcified costal cartilage beyond the rib's end
                tip, step = line[-1], line[-1] - line[-3]
                calcified.append(band(np.array([tip, tip + step * 0.8, tip + step * 1.8]), 0.33))
        first = curve(np.array([(2.0, -0.9), (4.6, -1.3), (6.4, 0.2), (5.8, 2.1), (3.4, 3.4)]) * (side, 1))
        cortex.append(band(first, 0.55))
        marrow.append(band(first, 0.35))
    bones = 1.15 * frame.blur(frame.mask(*cortex), 0.06) - 0.45 * frame.blur(frame.mask(*marrow), 0.1)
    bones += 0.5 * frame.blur(frame.mask(*front), 0.08)
    if calcified:
        bones += 0.012 * (age - 45) * frame.blur(frame.mask(*calcified), 0.12)
    return bones


def broken(exam: Exam, line: np.ndarray, side: int, number: int) -> list[np.ndarray]:
    """Return the pieces of a rib: one, or two with a step between them where `rib_fracture` breaks it."""
    strength = exam.findings.get("rib_fracture")
    if strength is None:
        return [line]
    rng = exam.lesion_rng("rib_fracture")
    hurt, first, count = (-1 if rng.random() < 0.5 else 1), int(rng.integers(3, 7)), 3 + int(rng.random() < 0.5)
    if side != hurt or not first <= number < first + count:
        return [line]
    cut = int(len(line) * (0.62 + 0.06 * ((number * 7) % 3)))
    step = np.array([0.12 * side, 0.35 + 0.95 * strength])
    gap = 1 + int(2 * strength)
    outer = line[cut + gap :] + step * np.linspace(1, 0.35, len(line) - cut - gap)[:, None]
    return [line[:cut], outer]


def _girdle(frame: Frame, exam: Exam, shape: Shape) -> np.ndarray:
    w = exam.patient.chest_width
    bed = exam.projection == "AP"
    lift = -1.3 if bed else 0.0
    blades = 0.0 if not bed else -2.6  # shoulders not rolled forward: shoulder blades over the lungs
    bones = frame.zeros()
    cortex, marrow = [], []
    for side in (-1, 1):
        line = curve(moved(np.array([(1.9, 2.5), (5.0, 1.75), (9.0, 0.1), (13.0, -1.5), (16.6, -2.0)]), 0, lift)) * (
            side * w,
            1,
        )
        line = moved(line, 0.6 * shape.sway, 0)
        half = np.interp(np.linspace(0, 1, len(line)), [0, 0.15, 0.6, 1], [0.95, 0.62, 0.52, 0.75])
        for piece in _broken_clavicle(exam, line, side):
            k = len(line) - len(piece) if piece[-1] is line[-1] else 0
            part = half[k : k + len(piece)]
            cortex.append(band(piece, part))
            marrow.append(band(piece, part * 0.55))
        blade = np.array(
            [(15.3, -0.5), (13.6, 3), (12.7, 8), (13.2, 12.6), (14.4, 11.2), (16.2, 6.0), (17.4, 2.4), (17.0, 0)]
        )
        blade = curve(moved(blade, blades, 0) * (side * w, 1), closed=True)
        flat = frame.mask(blade)
        bones += 0.4 * flat + 0.75 * (flat - frame.mask(blade * 0.965 + blade.mean(axis=0) * 0.035))
        ridge = curve(moved(np.array([(13.2, 1.6), (15.5, 0.2), (18.3, -1.6)]), blades * 0.6, 0)) * (side * w, 1)
        cortex.append(band(ridge, 0.45))
        head = frame.mask8(ellipse((side * 19.0 * w, 1.5), (2.5, 2.7)))
        bones += 1.6 * frame.dome(head, 1.4)
        shaft = curve(np.array([(19.4, 3.2), (20.8 + (0 if bed else 1.4), 9), (21.3 + (0 if bed else 4), 18)])) * (
            side * w,
            1,
        )
        bones += 1.5 * frame.mask(band(shaft, 1.15)) - 0.7 * frame.mask(band(shaft, 0.65))
    bones += 1.0 * frame.blur(frame.mask(*cortex), 0.06) - 0.45 * frame.blur(frame.mask(*marrow), 0.08)
    return bones


def _broken_clavicle(exam: Exam, line: np.ndarray, side: int) -> list[np.ndarray]:
    strength = exam.findings.get("clavicle_fracture")
    if strength is None or side != (-1 if exam.lesion_rng("clavicle_fracture").random() < 0.5 else 1):
        return [line]
    cut = len(line) // 2
    step = np.linspace(1, 0.3, len(line) - cut)[:, None] * np.array([-0.5 * side, 0.2 + 1.5 * strength])
    return [line[:cut], line[cut:] + step]


def _spine(frame: Frame, exam: Exam) -> np.ndarray:
    pitch = 2.25 * exam.patient.chest_height
    bodies, cores, pedicles, processes = [], [], [], []
    for level in range(-5, 17):
        y = -0.3 + pitch * (level if level > 0 else 0.82 * level)
        half = (1.35 if level < 0 else 1.5) + 0.045 * max(level, 0)
        x = exam.patient.scoliosis * np.sin(0.16 * y) + 0.15 * exam.turn
        tall = 0.5 * pitch * (0.82 if level > 0 else 0.68) * 0.96
        box = np.array(
            [(-half, -tall), (-0.88 * half, 0), (-half, tall), (half, tall), (0.88 * half, 0), (half, -tall)]
        )
        bodies.append(moved(box, x, y))
        cores.append(moved(box * (0.86, 0.72), x, y))
        pedicles += [ellipse((x + s * half * 0.62, y - 0.25 * tall), (0.27, 0.38), points=12) for s in (-1, 1)]
        processes.append(ellipse((x + 0.35 * exam.turn, y + tall), (0.22, 0.6), points=12))
    spine = 1.25 * frame.blur(frame.mask(*bodies), 0.12) - 0.5 * frame.blur(frame.mask(*cores), 0.12)
    spine += 0.7 * frame.blur(frame.mask(*pedicles), 0.08) + 0.7 * frame.blur(frame.mask(*processes), 0.08)
    return spine
