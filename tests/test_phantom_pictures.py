"""What the phantoms draw: findings that can be measured, anatomy that stays the patient's, physics that holds."""

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxrdist.findings import check_names
from cxrdist.phantom import contact_sheet
from cxrdist.phantom.acquisition import Beam, equalise
from cxrdist.phantom.disease import DRAWN, LASTING, draw_findings, implied, strength
from cxrdist.phantom.draw import draw_exam_picture
from cxrdist.phantom.people import Draw, Exam, Key, draw_exam, draw_patient
from cxrdist.phantom.shapes import frontal_shape

SIDE = 96


def exam(number: int, found: dict[str, float] | None = None, *, projection: str = "PA", image: int = 0) -> Exam:
    key = Key(0, 7, number, image)
    return draw_exam(key, draw_patient(key), projection, found or {})


def picture(number: int, found: dict[str, float] | None = None, *, side: int = SIDE, **options) -> np.ndarray:
    return draw_exam_picture(exam(number, found, **options), Beam(), shape=(side, side))


@pytest.mark.parametrize("projection", ["PA", "AP", "lateral"])
def test_a_picture_is_a_pure_function_of_its_exam(projection):
    first, again = (
        picture(3, {"effusion": 1.0}, projection=projection),
        picture(3, {"effusion": 1.0}, projection=projection),
    )
    assert first.dtype == np.float32
    assert 0 <= first.min() < 0.1
    assert 0.85 < first.max() <= 1
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - picture(4, {"effusion": 1.0}, projection=projection)).mean() > 0.01


@pytest.mark.parametrize("projection", ["PA", "AP"])
def test_lungs_are_dark_and_the_mediastinum_is_bright(projection):
    for number in range(8):
        shown = picture(number, projection=projection)
        middle = shown[SIDE // 2 - 5 : SIDE // 2 + 5]
        mediastinum = middle[:, SIDE // 2 - 4 : SIDE // 2 + 4].mean()
        for lung in (middle[:, 20:30], middle[:, 68:78]):
            assert lung.mean() < mediastinum - 0.2, f"patient {number}"


def test_a_large_picture_shrinks_to_the_small_one():
    small, large = picture(5, {"mass": 0.9}), picture(5, {"mass": 0.9}, side=4 * SIDE)
    shrunk = cv2.resize(large, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.99


def test_images_of_one_patient_look_more_alike_than_images_of_two():
    def lungs(number: int, image: int) -> np.ndarray:
        # What is left of the picture without its broad shading: ribs and vessels.
        shown = picture(number, image=image, side=2 * SIDE)[50:120, 30:162]
        return (shown - cv2.GaussianBlur(shown, (0, 0), 4)).ravel()

    same = [exam(k, image=0).patient == exam(k, image=1).patient for k in range(4)]
    assert all(same)
    apart = [np.abs(lungs(k, 0) - lungs(k + 1, 0)).mean() for k in range(6)]
    alike = [np.abs(lungs(k, 0) - lungs(k, 1)).mean() for k in range(6)]
    assert np.mean(alike) < np.mean(apart)


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_the_cardiothoracic_ratio_tells_cardiomegaly_at_every_difficulty(difficulty):
    for number in range(40):
        luck = number / 39
        assert frontal_shape(exam(number)).cardiothoracic_ratio < 0.48
        assert frontal_shape(exam(number, {"cardiomegaly": strength(difficulty, luck)})).cardiothoracic_ratio > 0.55


def test_a_bed_exposure_magnifies_the_heart_and_raises_the_domes():
    upright, bed = [], []
    for number in range(20):
        upright.append(frontal_shape(exam(number)))
        bed.append(frontal_shape(exam(number, projection="AP")))
    assert np.mean([a.heart_width for a in bed]) > 1.05 * np.mean([p.heart_width for p in upright])
    assert np.mean([a.domes for a in bed]) < np.mean([p.domes for p in upright]) - 0.5


@pytest.mark.parametrize("finding", DRAWN)
def test_every_finding_changes_the_picture_less_the_harder_it_is(finding):
    change = []
    for difficulty in (0.0, 0.5, 0.95):
        found = {finding: strength(difficulty, 0.5)}
        change.append(np.mean([np.abs(picture(k, found) - picture(k)).mean() for k in range(4)]))
    assert change[0] > change[1] > change[2] > 0
    assert change[0] > 0.0005


def bases(shown: np.ndarray) -> float:
    """Brightness of the denser lateral base against the lungs' middle."""
    rows = shown[int(0.62 * SIDE) : int(0.74 * SIDE)]
    middle = shown[int(0.35 * SIDE) : int(0.5 * SIDE)]
    edges = (slice(int(0.2 * SIDE), int(0.3 * SIDE)), slice(int(0.7 * SIDE), int(0.8 * SIDE)))
    return max(float(rows[:, edge].mean() - middle[:, edge].mean()) for edge in edges)


def heart(shown: np.ndarray) -> float:
    """Share of bright pixels in the rows that cross the heart."""
    rows = shown[int(0.52 * SIDE) : int(0.62 * SIDE), int(0.2 * SIDE) : int(0.8 * SIDE)]
    return float((rows > 0.6).mean())


def wings(shown: np.ndarray) -> float:
    """Brightness beside the hila."""
    rows = shown[int(0.38 * SIDE) : int(0.55 * SIDE)]
    return float(
        min(rows[:, int(0.3 * SIDE) : int(0.4 * SIDE)].mean(), rows[:, int(0.62 * SIDE) : int(0.72 * SIDE)].mean())
    )


@pytest.mark.parametrize(("finding", "statistic"), [("effusion", bases), ("cardiomegaly", heart), ("edema", wings)])
def test_a_plain_pixel_statistic_finds_the_obvious(finding, statistic):
    healthy = [statistic(picture(k)) for k in range(30)]
    ill = [statistic(picture(k, {finding: strength(0.0, 0.5)})) for k in range(30, 60)]
    assert roc_auc_score([0] * 30 + [1] * 30, healthy + ill) > 0.8


def test_no_vessel_crosses_a_pneumothorax():
    line, fine = [], []
    for number in range(6):
        full, empty = (picture(number, found, side=320) for found in ({}, {"pneumothorax": 1.0}))
        free = empty < full - 0.08
        assert free.mean() > 0.01
        inner = cv2.erode(free.astype(np.uint8), np.ones((5, 5))) > 0
        fine.append((full - cv2.GaussianBlur(full, (0, 0), 3))[inner].std())
        line.append((empty - cv2.GaussianBlur(empty, (0, 0), 3))[inner].std())
    assert np.mean(line) < 0.9 * np.mean(fine)


def test_strength_falls_with_difficulty_and_spreads_with_luck():
    assert strength(0, 0.5) > strength(0.5, 0.5) > strength(0.9, 0.5) > 0
    assert strength(0.5, 1.0) > strength(0.5, 0.0)


def test_every_drawn_or_implied_finding_is_canonical():
    check_names(DRAWN)
    check_names(sorted(implied(set(DRAWN))))
    assert set(DRAWN) >= LASTING
    assert implied({"support_devices"}) == {"support_devices", "no_finding"}
    assert "lung_opacity" in implied({"mass"})


def draws(seed: int, prevalence: dict[str, float], count: int = 3000, **options) -> list[dict[str, float]]:
    found = []
    for k in range(count):
        key = Key(seed, 7, k)
        lasting, passing = key.lasting(Draw.DISEASE), key.lasting(Draw.DISEASE, 1)
        found.append(draw_findings(lasting, passing, prevalence, difficulty=0.5, **options))
    return found


def test_findings_come_as_often_as_asked():
    found = draws(0, {"nodule": 0.12, "pneumonia": 0.3}, healthy=0.4)
    assert np.mean(["nodule" in f for f in found]) == pytest.approx(0.12, abs=0.02)
    assert np.mean(["pneumonia" in f for f in found]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([not f for f in found]) > 0.4


def test_edema_comes_more_often_with_cardiomegaly():
    found = draws(1, {"cardiomegaly": 0.3, "edema": 0.15})
    large = ["edema" in f for f in found if "cardiomegaly" in f]
    small = ["edema" in f for f in found if "cardiomegaly" not in f]
    assert np.mean(large) > 1.4 * np.mean(small)


def test_equalising_uses_the_grey_scale_evenly():
    levels = equalise(picture(2, side=2 * SIDE))
    assert np.quantile(levels[levels > 0.2], 0.5) == pytest.approx(0.6, abs=0.12)


def test_the_contact_sheet_is_one_picture(tmp_path):
    sheet = cv2.imread(str(contact_sheet(tmp_path / "sheet.png", size=48)), cv2.IMREAD_UNCHANGED)
    assert sheet.shape == (6 * (48 + 15), 8 * 48)
