"""Collections of COVID-19 that were put together from others: COVIDx and COVID-QU-Ex."""

from collections import Counter

import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from cxrdist.errors import UserError
from tests.trees.covid import A_TEST, A_TRAIN, RSNA, make_covid, make_covid_qu_ex, make_covidx
from tests.trees.files import by_name, imported, reasons

ORDER = ("covid19", "pneumonia", "no_finding")


def told(found):
    return {name: [row.findings[finding] for finding in ORDER] for name, row in by_name(found).items()}


@pytest.mark.parametrize("form", ["kaggle", "covidnet"])
def test_covidxs_lines_are_read_from_the_right_and_negative_says_nothing_of_pneumonia(tmp_path, form):
    named = make_covidx(tmp_path, form=form)
    found = imported(tmp_path, "covidx", named)
    # The competition's images have no labels, also those whose names other folders have.
    assert reasons(found) == {"missing_file": 1, **({"no_label_row": 2} if form == "kaggle" else {})}
    rows = by_name(found)
    first = rows["COVID(949).png"]
    assert (first.patient, first.origin, told(found)["COVID(949).png"]) == ("COVID 949", "sirm", [1, None, None])
    assert told(found)[f"{RSNA.format(1)}.png"] == [0, None, None]
    assert Counter(row.origin for row in found.rows) == {"sirm": 1, "cohen": 2, "ricord": 2, "rsna": 3}
    # An image of the test has its own folder's file, not the one of the same name in the competition's.
    assert (
        rows[f"{RSNA.format(4)}.png"].split == "test" and rows[f"{RSNA.format(4)}.png"].source.count("competition") == 0
    )
    assert sum(row.split == "test" for row in found.rows) == 2
    assert {row.projection for row in found.rows} == {"unknown"} and all(
        row.notes == {"frontal": True} for row in found.rows
    )


def test_covidxs_three_classes_are_read_where_they_are_asked_for_or_alone(tmp_path):
    make_covidx(tmp_path / "both", form="covidnet")
    for line in A_TRAIN:
        (tmp_path / "both/data/train" / line.split()[1]).touch()
    classes = read_facts("covidx", variant="three_classes")
    named = make_covidx(tmp_path / "alone", form="A", train=A_TRAIN, test=A_TEST)
    assert detect(tmp_path / "alone").name == "covidx"
    for facts, root in ((classes, tmp_path / "both"), (detect(tmp_path / "alone"), tmp_path / "alone")):
        found = import_dataset(facts, root)
        values = told(found)
        assert values["COVID-00001.jpg"] == [1, None, None]  # an infection, not what is to be seen of it
        assert values[f"{RSNA.format(1)}.png"] == values[f"{RSNA.format(4)}.png"] == [0, 0, 1]
        assert values[f"{RSNA.format(2)}.png"] == [0, 1, 0]
        assert reasons(found)["duplicate_row"] == 1  # listed once per box
    assert len(found.rows) + len(found.rejects) == named


def test_covidxs_oldest_lists_know_no_source_and_the_newest_have_a_validation_folder(tmp_path):
    old = [line.rsplit(" ", 1)[0] for line in A_TRAIN]
    named = make_covidx(tmp_path / "old", form="first", train=old, test=[line.rsplit(" ", 1)[0] for line in A_TEST])
    found = import_dataset(detect(tmp_path / "old"), tmp_path / "old")
    assert len(found.rows) + len(found.rejects) == named
    assert {row.origin for row in found.rows} == {"other"} and told(found)["COVID-00001.jpg"][0] == 1
    named = make_covidx(tmp_path / "new", val=["COVID-00001 COVID-00001.jpg positive fig1"])
    found = import_dataset(detect(tmp_path / "new"), tmp_path / "new")
    assert len(found.rows) + len(found.rejects) == named
    assert {row.patient for row in found.rows if row.split == "val"} == {"COVID-00001"}


def test_a_covidx_line_of_no_known_form_is_an_error_without_its_words(tmp_path):
    make_covidx(tmp_path, train=["77 a.png Mustermann rsna"])
    with pytest.raises(UserError, match="got 1 that are not") as caught:
        import_dataset(read_facts("covidx"), tmp_path)
    assert "Mustermann" not in str(caught.value)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("parts", [("Lung", "Infection"), ("Lung",), ("Infection",)])
def test_covid_qu_ex_is_read_once_and_its_masks_are_no_images(tmp_path, parts, nested):
    named = make_covid_qu_ex(tmp_path, parts=parts, nested=nested)
    facts = detect(tmp_path)
    assert facts.name == "covid_qu_ex" and not facts.has_patient_ids
    found = import_dataset(facts, tmp_path)
    assert (len(found.rows), found.rejects) == (named, [])
    assert all(row.source.startswith(parts[0]) and "/images/" in row.source for row in found.rows)
    assert Counter(row.split for row in found.rows) == dict.fromkeys(("train", "val", "test"), named // 3)
    values = told(found)
    assert values["covid-19_Train0.png"] == [1, None, None]
    assert values["non-covid_Test0.png"] == [0, 1, 0] and values["normal_Val0.png"] == [0, 0, 1]


@pytest.mark.parametrize("below", ["Lung Segmentation Data", "Lung Segmentation Data/Lung Segmentation Data"])
def test_covid_qu_ex_is_found_from_inside_one_of_its_parts(tmp_path, below):
    make_covid_qu_ex(tmp_path)
    assert detect(tmp_path / below).name == "covid_qu_ex"
    assert len(import_dataset(detect(tmp_path / below), tmp_path / below).rows) == 18


def test_a_scan_of_covid_chestxray_is_no_radiograph_also_where_only_its_folder_says_so(tmp_path):
    named = make_covid(tmp_path, early=True)  # no column of the modality yet
    found = import_dataset(read_facts("covid_chestxray"), tmp_path, projection="all")
    assert len(found.rows) + len(found.rejects) == named
    assert not [row for row in found.rows if row.patient == "9"]
    assert [reject.detail for reject in found.rejects if reject.source.endswith(".nii.gz")] == ["another folder"]
