"""A simple lateral chest: spine behind (image right), breastbone in front, heart in front below, two domes.

x grows towards the back; the origin is the middle of the chest at the height of the apices.
"""

import numpy as np

from cxrdist.phantom.canvas import Frame, band, curve, ellipse, moved
from cxrdist.phantom.people import Draw, Exam
from cxrdist.phantom.shapes import heart_ratio
from cxrdist.phantom.vessels import vessels


def lateral_water(frame: Frame, exam: Exam) -> np.ndarray:
    """Return the water-equivalent thickness (cm) of a lateral exposure."""
    patient, found = exam.patient, exam.findings
    rng = exam.key.lasting(Draw.VESSELS, 7)
    deep = 1 + 0.06 * patient.habitus + 0.08 * ("emphysema" in found)
    dome = 20.0 * patient.chest_height + 1.1 * exam.breath + (1.5 if "emphysema" in found else 0.0)
    wide = 2.0 * patient.habitus
    front = np.array(
        [(-6, -30), (-5.5, -6), (-7.5, -2.5), (-11, 2), (-13 - wide, 9), (-13.5 - wide, 17), (-13 - 1.5 * wide, 60)]
    )
    back = np.array(
        [(13.5 + wide, 60), (13 + wide, 24), (13.6 + wide, 14), (13.2 + wide, 4), (10, -3), (7, -7), (6.5, -30)]
    )
    body = (27 + 3 * patient.habitus) * frame.dome(
        frame.mask8(np.vstack([curve(front), curve(back)]) * (deep, 1)), 7.5, 2.4
    )
    arm = curve(np.array([(2, -2), (-2, -7), (-6, -12)]))
    body += 3.0 * frame.blur(frame.mask(band(arm, 4.0)), 0.6)
    if patient.sex == "F":
        body += 2.5 * frame.dome(frame.mask8(ellipse((-13.5 * deep, 15), (4, 4.5))), 3.0)
    lung = np.vstack(
        [
            curve(np.array([(0.5, 0.2), (-4.5, 1.8), (-8.5, 6), (-10.2, 11), (-10.6, dome - 0.5)])),
            curve(np.array([(-10.6, dome - 0.5), (-7, dome), (-2, dome + 0.4), (4, dome + 2.4), (9.6, dome + 6.0)])),
            curve(np.array([(9.6, dome + 6.0), (10.6, dome), (10.8, 12), (9.5, 5), (5.5, 0.6), (0.5, 0.2)])),
        ]
    ) * (deep, 1)
    mask8 = frame.mask8(lung)
    mask = mask8.astype(np.float32) / 255
    air = 15.0 * frame.dome(mask8, 6.5, 2.6)
    heart_size = heart_ratio(exam) / 0.45
    heart = np.array(
        [(-2.2, 9.6), (-6.3, 11.0), (-9.4, dome - 4.6), (-9.4, dome), (-5.0, dome + 1.4), (-0.6, dome + 1.0)]
    )
    heart = np.vstack([heart, [(1.3, dome - 3.2), (0.6, 12.2)]])
    middle = np.array((-5.0, dome - 3.0))
    heart = curve(middle + (heart - middle) * (heart_size**0.8, heart_size**0.6), closed=True) * (deep, 1)
    air -= np.minimum(8.0 * frame.dome(frame.mask8(heart), 4.5), air)
    aorta = curve(np.array([(-3.0, 10.5), (-2.0, 6.3), (1.5, 5.0), (4.6, 7.2), (5.6, 12), (6.0, 22)])) * (deep, 1)
    tissue = 1.1 * frame.blur(
        frame.mask(band(aorta, patient.aorta * (1.35 if "aortic_enlargement" in found else 1))), 0.2
    )
    tissue += 2.6 * frame.blur(frame.ball((0.3, 9.8), (1.9, 2.5)), 0.3)
    tissue -= 1.6 * frame.blur(frame.mask(band(curve(np.array([(-1.2, -6), (0.0, 1), (1.0, 7.5)])), 0.8)), 0.12)
    tissue += (0.12 * frame.cloud(rng, 0.6) + 0.15 * frame.cloud(rng, 1.4)) * mask
    tissue += 2.0 * vessels(frame, exam, None) * np.minimum(air / 8, 1)
    bubble = frame.ball((-3.5, dome + 3.2), (2.4, 1.3))
    tissue -= 4.0 * frame.blur(bubble, 0.2)
    water = body - air + tissue + _bones(frame, exam, deep)
    return np.asarray(np.maximum(_diseased(frame, exam, water, air, mask, dome, rng), 0), np.float32)


def _bones(frame: Frame, exam: Exam, deep: float) -> np.ndarray:
    pitch = 2.25 * exam.patient.chest_height
    boxes, cores, ribs = [], [], []
    for level in range(-4, 15):
        y = -0.2 + pitch * level
        x = (8.2 + 1.6 * np.sin(np.clip((y + 3) / 30, 0, 1) * np.pi)) * deep
        half, tall = 1.35 + 0.03 * level, 0.41 * pitch
        box = moved(
            np.array([(-half, -tall), (-0.9 * half, 0), (-half, tall), (half, tall), (0.9 * half, 0), (half, -tall)]),
            x,
            y,
        )
        boxes.append(box)
        cores.append(box * 0.82 + 0.18 * box.mean(axis=0))
        if 0 < level < 10:
            rib = np.array([(x + 2.0, y), (x + 3.0, y + 2.0), (4.5, y + 6.0), (-4.0, y + 8.5), (-9.0 * deep, y + 7.2)])
            ribs += [band(curve(rib), 0.42), band(curve(moved(rib, -0.9, 0.8)), 0.42)]
    bones = 2.2 * frame.blur(frame.mask(*boxes), 0.1) - 1.0 * frame.blur(frame.mask(*cores), 0.12)
    for rib in ribs:
        bones += 0.28 * frame.mask(rib)
    sternum = curve(np.array([(-7.4, 2.6), (-9.8, 6.5), (-11.5, 12), (-12.0, 16)])) * (deep, 1)
    return np.asarray(bones + 1.1 * frame.mask(band(sternum, 0.55)))


def _diseased(
    frame: Frame,
    exam: Exam,
    water: np.ndarray,
    air: np.ndarray,
    mask: np.ndarray,
    dome: float,
    rng: np.random.Generator,
) -> np.ndarray:
    found = exam.findings
    x, y = frame.grid
    if "effusion" in found:  # first seen where the lung reaches lowest: behind
        level = dome + 4.6 - 6.5 * found["effusion"]
        fluid = 1 / (1 + np.exp(-np.clip((y - level + np.exp(-np.maximum(10.5 - x, 0) / 2)) / 0.4, -30, 30)))
        water = water + fluid * mask * air * np.float32(0.25 + 0.45 * found["effusion"])
    opacities = {
        "consolidation": 3.6,
        "pneumonia": 3.0,
        "mass": 2.6,
        "edema": 6.0,
        "infiltration": 4.5,
        "tuberculosis": 3.0,
    }
    for name, radius in opacities.items():
        if name in found:
            place = exam.lesion_rng("lateral " + name)
            at = (place.uniform(-4, 6), place.uniform(6, 17))
            blob = frame.ball(at, (radius, radius * 0.8), place.uniform(-1, 1))
            rough = 1 if name == "mass" else 1 + 0.4 * frame.cloud(rng, 1.0)
            water = water + (0.5 + 3.2 * found[name]) * frame.blur(blob * rough, 0.15 if name == "mass" else 0.6) * mask
    if "nodule" in found:
        place = exam.lesion_rng("lateral nodule")
        spot = frame.ball((place.uniform(-5, 6), place.uniform(5, 17)), (0.9, 0.9))
        water = water + (0.6 + 2.2 * found["nodule"]) * spot * mask
    if "atelectasis" in found:
        plate = band(np.array([(-6, dome - 2), (-1, dome - 1.2), (5, dome - 1.5)]), 0.25)
        water = water + (0.4 + 1.8 * found["atelectasis"]) * frame.mask(plate) * mask
    if "support_devices" in found:
        lead = curve(np.array([(-11, 2), (-5, 1), (-2, 6), (-1, 12), (-5.5, dome - 2)]))
        water = water + (1 + 2 * found["support_devices"]) * frame.stroke(lead, 0.17)
    return np.asarray(water)
