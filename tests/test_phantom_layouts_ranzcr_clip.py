"""A drawn RANZCR CLiP: a column per line and place, ways that end where the column says, an unlabelled test part."""

import json

import numpy as np
import pandas as pd
import pytest

from cxrdist.dicom import read_radiograph
from cxrdist.phantom import write_phantoms
from cxrdist.phantom.acquisition import Beam
from cxrdist.phantom.draw import draw_exam_picture
from cxrdist.phantom.layouts import ranzcr_clip
from cxrdist.phantom.lines import PLACES, add_lines, draw_way
from cxrdist.phantom.people import Draw, Exam, Key, draw_exam, draw_patient
from cxrdist.phantom.shapes import Shape, frontal_shape
from tests.phantoms import plan_of

HEADER = (
    "StudyInstanceUID,ETT - Abnormal,ETT - Borderline,ETT - Normal,NGT - Abnormal,NGT - Borderline,"
    "NGT - Incompletely Imaged,NGT - Normal,CVC - Abnormal,CVC - Borderline,CVC - Normal,Swan Ganz Catheter Present,"
    "PatientID"
)
COLUMNS = HEADER.split(",")[1:-1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranzcr_clip")
    write_phantoms("ranzcr_clip", root, patients=40, size=64, shown=False)
    return root


def test_the_table_names_the_lines_that_are_drawn_and_only_the_training_images(root):
    table = pd.read_csv(root / "train.csv").set_index("StudyInstanceUID")
    assert (root / "train.csv").read_text().splitlines()[0] == HEADER
    items, _ = plan_of(root)
    train = [item for item in items if item.facts["part"] == "train"]
    assert list(table.index) == [item.facts["uid"] for item in train]
    for item in train:
        row = table.loc[item.facts["uid"]]
        told = {name for name in COLUMNS if row[name] == 1}
        assert told == {ranzcr_clip.column_of(kind, place) for kind, place in item.facts["lines"]}
        assert bool(told) == ("support_devices" in item.labels)
        assert row["PatientID"] == item.facts["patient_id"]
    assert table[COLUMNS].isin([0, 1]).all(axis=None)
    assert (table[COLUMNS].sum(axis=1) > 1).any() and (table[COLUMNS].sum(axis=1) == 0).any()
    test = {item.facts["uid"] for item in items if item.facts["part"] == "test"}
    assert test and set(pd.read_csv(root / "sample_submission.csv")["StudyInstanceUID"]) == test
    people = {part: {item.key.patient for item in items if item.facts["part"] == part} for part in ("train", "test")}
    assert not people["train"] & people["test"]
    assert all(item.path == f"{item.facts['part']}/{item.facts['uid']}.jpg" for item in items)
    assert all(item.facts["uid"].startswith("2.25.") for item in items)


def test_annotated_ways_lie_in_the_picture_on_something_bright(root):
    table = pd.read_csv(root / "train_annotations.csv")
    assert list(table.columns) == ["StudyInstanceUID", "label", "data"]
    labels = pd.read_csv(root / "train.csv").set_index("StudyInstanceUID")
    brighter = []
    for uid, label, data in table.itertuples(index=False):
        assert labels.loc[uid, label] == 1
        points = np.array(json.loads(data))
        path = root / "train" / f"{uid}.jpg"
        if not path.is_file() or path.stat().st_size < 500:
            continue
        try:
            shown = read_radiograph(path).pixels
        except Exception:  # the one that is cut short
            continue
        assert (points >= 0).all() and (points < shown.shape[::-1]).all()
        inner = points[(points[:, 0] > 3) & (points[:, 0] < shown.shape[1] - 4)]
        on = shown[inner[:, 1], inner[:, 0]].mean()
        beside = np.mean([shown[inner[:, 1], inner[:, 0] + step].mean() for step in (-3, 3)])
        brighter.append(on > beside)
    assert len(brighter) > 10 and np.mean(brighter) > 0.8


def exam_of(number: int) -> tuple[Exam, Shape]:
    key = Key(3, 16, number)
    exam = draw_exam(key, draw_patient(key), "AP", {})
    return exam, frontal_shape(exam)


@pytest.mark.parametrize(("kind", "place"), [(kind, place) for kind, places in PLACES.items() for place in places])
def test_tips_lie_where_the_column_says(kind, place):
    for number in range(12):
        exam, shape = exam_of(number)
        tip = draw_way(kind, place, exam, shape, exam.key.passing(Draw.DEVICE, 1)).way[-1]
        carina, dome = 8.0 * exam.patient.chest_height, shape.domes[1]
        above = carina - tip[1]
        match kind, place:
            case "ETT", "Normal":
                assert 3 <= above <= 5.5 and abs(tip[0]) < 2.5
            case "ETT", "Borderline":
                assert 1 <= above <= 2
            case "ETT", _:
                assert (tip[0] < -1 and above < 0) or above > 10
            case "NGT", "Normal":
                assert tip[1] > dome + 3 and tip[0] > 4
            case "NGT", "Borderline":
                assert 0 < tip[1] - dome < 2
            case "NGT", "Incompletely Imaged":
                assert tip[1] > 50
            case "NGT", _:
                assert tip[1] < dome - 2
            case "CVC", "Normal":
                assert -3 <= above <= 0 and -4 < tip[0] < 0
            case "CVC", "Borderline":
                assert (2.4 <= above <= 3.6 or -8.5 <= above <= -7) and -4 < tip[0] < 0
            case "CVC", _:
                assert tip[1] < 1 and abs(tip[0]) > 4
            case "Swan Ganz", _:
                assert tip[1] > carina and abs(tip[0]) > 3


@pytest.mark.parametrize("kind", PLACES)
def test_a_line_brightens_its_way_and_an_easier_one_more(kind):
    exam, shape = exam_of(1)
    line = draw_way(kind, PLACES[kind][0], exam, shape, exam.key.passing(Draw.DEVICE, 1))

    def picture(strength: float | None) -> np.ndarray:
        def extra(scene) -> None:
            if strength is not None:
                add_lines(scene, [line], strength)

        return draw_exam_picture(exam, Beam(), shape=(160, 160), extra=extra)

    bare, faint, clear = picture(None), picture(0.1), picture(1.0)
    assert 0 < np.abs(faint - bare).mean() < np.abs(clear - bare).mean()
