"""What `shards info` tells: numbers as pandas and scikit-learn count them, and warnings where they are due only."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from cxrdist.cli.main import app
from cxrdist.datasets import list_facts, read_facts
from cxrdist.datasets.records import SPLITS, Import, Row
from cxrdist.datasets.shard_format import read_index, read_manifest
from cxrdist.findings import LabelPolicy
from cxrdist.pack import PackOptions, pack_dataset, pack_rows
from cxrdist.pack.contents import read_contents
from cxrdist.pack.info import ShardInfo, shard_info
from cxrdist.pack.overlaps import Pair, compare_folders, known_overlaps
from cxrdist.pack.plan import DatasetName
from cxrdist.phantom import write_phantoms
from tests.test_pack_origin import as_format_1

RULES = ["origin", "projection", "file type", "sex", "age", "image size", "mean brightness"]
ORIGINS = ("rsna", "sirm", "bimcv", "ricord")


def make_rows(
    folder: Path, *, images: int = 260, seed: int = 0, **change: Callable[[dict, np.random.Generator], object]
):
    """Write noise of several formats, sizes and levels; return rows where nothing has to do with anything.

    `change` sets a field of a row from the fields drawn so far, in the order given; `pixels` is the image.
    """
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(images):
        shape = (12 + rng.integers(0, 3), 14 + rng.integers(0, 5))
        fields = {
            "findings": {"effusion": int(rng.random() < 0.5), "edema": int(rng.random() < 0.45)},
            "split": ("train", "train", "train", "val", "test")[number // 2 % 5],
            "origin": str(rng.choice(ORIGINS)),
            "projection": str(rng.choice(["PA", "AP", "unknown"])),
            "sex": str(rng.choice(["F", "M", "unknown"])),
            "age": int(rng.integers(0, 90)) if rng.random() < 0.8 else None,
            "patient": f"p{number}",
            "pixels": np.clip(rng.normal(rng.uniform(60, 200), 20, shape), 0, 255).astype(np.uint8),
            "kind": str(rng.choice([".png", ".jpg"])),
        }
        for name, draw in change.items():
            fields[name] = draw(fields, rng)
        path = folder / f"{number}.bin"
        path.write_bytes(cv2.imencode(fields.pop("kind"), fields.pop("pixels"))[1].tobytes())
        rows.append(Row(source=path.name, path=path, study=str(number), **fields))
    return rows


def pack(rows: list[Row], out: Path, *, name: str = "toy", namespace: str = "toy", policy=None, **options) -> Path:
    key = options.pop("id_key", out.parent / "id.key")
    if not key.exists():
        # Which patients are in which half follows from the key: a random one would be another test in every run.
        out.parent.mkdir(parents=True, exist_ok=True)
        key.write_text(f"{key.name:*^40}")
        key.chmod(0o600)
    known = options.pop("patients_known", True)
    settings = PackOptions(**{"size": 64, "format": "png", "id_key": key, "projection": "all", **options})
    dataset = DatasetName(name, name.title(), namespace, "0" * 64, policy=policy or LabelPolicy(), patients_known=known)
    pack_rows(dataset, Import(rows, []), out, settings, shown=False)
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("info")
    return pack(make_rows(folder / "raw"), folder / "shards")


def packed_images(shards: Path, split: str) -> dict[int, np.ndarray]:
    """Return every image of a split by its row in the index."""
    index = read_index(shards)
    images = {}
    for row, line in index[index["split"] == split].iterrows():
        with (shards / line["shard"]).open("rb") as file:
            encoded = os.pread(file.fileno(), line["image_bytes"], line["image_offset"])
        images[row] = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    return images


def strength(info: ShardInfo, finding: str, rule: str) -> dict[str, float | None]:
    (found,) = [shortcut for shortcut in info.shortcuts if (shortcut.finding, shortcut.rule) == (finding, rule)]
    return found.auroc


# --- numbers


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_levels_are_those_of_numpy_over_the_images_read(tmp_path, bits):
    rng = np.random.default_rng(1)
    deep = {
        "pixels": lambda fields, _: rng.integers(0, 60_000, (13, 15), np.uint16),
        "kind": lambda fields, _: ".png",
    }
    shards = pack(make_rows(tmp_path / "raw", images=60, **deep), tmp_path / "shards", bits=bits)
    for most in (10, 1000):
        info, contents = shard_info(shards, images=most), read_contents(shards, most)
        for split, part in info.splits.items():
            images = packed_images(shards, split)
            rows = contents.levels[split].rows
            assert len(rows) == part.intensities.images == min(most, len(images))
            assert set(rows) <= set(images)
            read = [images[row] * 255.0 / (2**bits - 1) for row in rows]
            pixels = np.concatenate([image.ravel() for image in read])
            wanted = [pixels.mean(), pixels.std()]
            wanted += [np.percentile(pixels, share, method="inverted_cdf") for share in (1, 50, 99)]
            told = part.intensities
            assert [told.mean, told.sd, told.p1, told.p50, told.p99] == pytest.approx(wanted)
            assert contents.levels[split].mean == pytest.approx([image.mean() for image in read])
            assert contents.levels[split].spread == pytest.approx([image.std() for image in read])


def test_the_images_read_are_always_the_same_and_spread_over_the_split(plain):
    one, two = (read_contents(plain, 12) for _ in range(2))
    rows = np.flatnonzero(one.index["split"] == "train")
    for split in SPLITS:
        assert np.array_equal(one.levels[split].rows, two.levels[split].rows)
    gaps = np.diff(np.searchsorted(rows, one.levels["train"].rows))
    assert len(gaps) == 11
    assert gaps.max() - gaps.min() <= 1
    assert one.levels["train"].rows[[0, -1]].tolist() == rows[[0, -1]].tolist()


def test_no_images_are_read_where_none_are_asked_for(plain, tmp_path):
    without = Path(shutil.copytree(plain, tmp_path / "shards"))
    for tar in without.glob("*.tar"):
        tar.unlink()
    info = shard_info(without, images=0)
    assert all(part.intensities is None for part in info.splits.values())
    assert {shortcut.rule for shortcut in info.shortcuts} == set(RULES) - {"mean brightness"}
    assert not info.warnings


def test_damaged_images_are_counted_and_warned_of(plain, tmp_path):
    broken = Path(shutil.copytree(plain, tmp_path / "shards"))
    line = read_index(broken).query("split == 'val'").iloc[0]
    with (broken / line["shard"]).open("r+b") as file:
        file.seek(line["image_offset"])
        file.write(b"\0\0")
    next(broken.glob("*-test-*.tar")).unlink()
    info = shard_info(broken)
    assert info.splits["val"].intensities.unreadable == 1
    assert info.splits["test"].intensities.images == 0
    assert info.splits["test"].intensities.mean is None
    assert (
        "53 of 260 images that were read are damaged. Check the folder with `cxrdist shards verify`." in info.warnings
    )


def test_sources_are_counted_per_split(plain):
    index = read_index(plain)
    info = shard_info(plain, images=0)
    for split, part in info.splits.items():
        own = index[index["split"] == split]
        assert part.kind == own["kind"].value_counts().to_dict()
        assert part.origin == own["origin"].value_counts().to_dict()
        assert part.bits == {"8": len(own)}
        assert part.transfer_syntax == {}


def expected_codes(shards: Path, rule: str) -> pd.Series:
    """Return the category of each image as text or number, NaN where it takes no part."""
    index = read_index(shards)
    train = index["split"] == "train"

    def binned(values: pd.Series) -> pd.Series:
        assert values[train].notna().sum() == 156, "three bins"
        edges = np.quantile(values[train].dropna(), [1 / 3, 2 / 3])
        return values.map(lambda value: np.nan if np.isnan(value) else (value >= np.unique(edges)).sum())

    if rule == "mean brightness":
        means = {row: image.mean() for split in SPLITS for row, image in packed_images(shards, split).items()}
        return binned(pd.Series(means).reindex(index.index))
    if rule == "image size":
        return (
            binned(index["height"].astype(float)).astype(str) + "x" + binned(index["width"].astype(float)).astype(str)
        )
    if rule == "age":
        return index["age"].astype("Float64").floordiv(10).astype(object).map(str)
    columns = ["kind", "transfer_syntax", "bits"] if rule == "file type" else [rule]
    return index[columns].astype(object).map(str).agg("/".join, axis=1)


def expected_auroc(labels: pd.Series, codes: pd.Series, fit: pd.Series, judge: pd.Series) -> float:
    groups = labels[fit].groupby(codes[fit])
    rates = groups.mean().where(groups.size() >= 10, labels[fit].mean())
    return roc_auc_score(labels[judge], codes[judge].map(rates).fillna(labels[fit].mean()))


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_judged_by_its_rates_in_training_on_what_was_held_out(plain, rule):
    index = read_index(plain)
    codes = expected_codes(plain, rule)
    halves = index["patient_id"].rank(method="dense").astype(int) % 2
    train = index["split"] == "train"
    info = shard_info(plain)
    for finding in ("effusion", "edema"):
        labels = index[f"y_{finding}"].astype(float)
        told = strength(info, finding, rule)
        for split in ("val", "test"):
            assert told[split] == pytest.approx(expected_auroc(labels, codes, train, index["split"] == split))
        parts = [expected_auroc(labels, codes, train & (halves != half), train & (halves == half)) for half in (0, 1)]
        assert told["train"] == pytest.approx(np.mean(parts))


def test_labels_are_those_of_the_policy_that_the_folder_carries(tmp_path):
    findings = {"findings": lambda fields, rng: {"effusion": (1, 0, -1, None)[rng.integers(4)]}}
    rows = make_rows(tmp_path / "raw", **findings)
    counts = {}
    for number, policy in enumerate((LabelPolicy(), LabelPolicy(uncertain="ones", not_mentioned="ignore"))):
        shards = pack(rows, tmp_path / str(number), policy=policy)
        counts[number] = shard_info(shards, images=0).shortcuts[0]
    index = read_index(tmp_path / "0")
    values = index.loc[index["split"] == "train", "y_effusion"]
    assert counts[0].positives["train"] == (values == 1).sum()
    assert counts[0].negatives["train"] == (values == 0).sum() + values.isna().sum()
    assert counts[1].positives["train"] == (values == 1).sum() + (values == -1).sum()
    assert counts[1].negatives["train"] == (values == 0).sum()


# --- warnings


@pytest.mark.parametrize("seed", range(3))
def test_a_dataset_without_shortcuts_gives_no_warning(tmp_path, seed):
    info = shard_info(pack(make_rows(tmp_path / "raw", seed=seed), tmp_path / "shards"))
    assert len(info.shortcuts) == 2 * len(RULES)
    assert info.warnings == []


def test_a_label_that_is_the_source_is_named_so(tmp_path):
    origin = {"origin": lambda fields, rng: rng.choice(ORIGINS[:2] if fields["findings"]["effusion"] else ORIGINS[2:])}
    info = shard_info(pack(make_rows(tmp_path / "raw", **origin), tmp_path / "shards"))
    assert strength(info, "effusion", "origin") == {"train": 1, "val": 1, "test": 1}
    assert info.shortcuts[0].rule == "origin"
    (warning,) = info.warnings
    assert warning.startswith("effusion: the label is the source. Each origin has one value of effusion only,")


def test_a_few_exceptions_leave_the_label_nearly_the_source(tmp_path):
    def origin(fields: dict, rng: np.random.Generator) -> str:
        return str(
            rng.choice(ORIGINS[:2] if bool(fields["findings"]["effusion"]) ^ (rng.random() < 0.02) else ORIGINS[2:])
        )

    info = shard_info(pack(make_rows(tmp_path / "raw", origin=origin), tmp_path / "shards"))
    counts = read_index(tmp_path / "shards").groupby("origin")["y_effusion"].agg(["sum", "size"])
    positives, negatives = counts["sum"], counts["size"] - counts["sum"]
    mostly = positives > negatives
    purity = min(positives[mostly].sum() / positives.sum(), negatives[~mostly].sum() / negatives.sum())
    assert 0.95 < purity < 1
    assert info.shortcuts[0].purity == pytest.approx(purity)
    (warning,) = info.warnings
    assert warning.startswith("effusion: the label is nearly the source. Each origin has nearly one value")


def test_a_rare_finding_is_not_called_its_source(tmp_path):
    rare = {"findings": lambda fields, rng: {"effusion": int(rng.random() < 0.03), "edema": int(rng.random() < 0.97)}}
    info = shard_info(pack(make_rows(tmp_path / "raw", **rare), tmp_path / "shards"))
    assert {shortcut.purity for shortcut in info.shortcuts if shortcut.rule == "sex"} == {0}
    assert info.warnings == []


PLANTED = {
    "origin": {"origin": lambda f, rng: "rsna" if f["findings"]["effusion"] ^ (rng.random() < 0.1) else "sirm"},
    "projection": {"projection": lambda f, rng: "AP" if f["findings"]["effusion"] ^ (rng.random() < 0.03) else "PA"},
    "file type": {"kind": lambda f, rng: ".jpg" if f["findings"]["effusion"] ^ (rng.random() < 0.03) else ".png"},
    "sex": {"sex": lambda f, rng: "F" if f["findings"]["effusion"] ^ (rng.random() < 0.03) else "unknown"},
    "age": {"age": lambda f, rng: None if f["findings"]["effusion"] else int(rng.integers(0, 90))},
    "image size": {
        "pixels": lambda f, rng: rng.integers(0, 256, (14, 14 + 6 * (f["findings"]["effusion"])), np.uint8),
    },
    "mean brightness": {
        "pixels": lambda f, rng: rng.integers(0, 200 + 55 * f["findings"]["effusion"], (14, 16), np.uint8),
    },
}


@pytest.mark.parametrize("rule", RULES)
def test_a_planted_shortcut_is_warned_of_by_name_and_nothing_else_is(tmp_path, rule):
    info = shard_info(pack(make_rows(tmp_path / "raw", **PLANTED[rule]), tmp_path / "shards"))
    found = info.shortcuts[0]
    assert (found.finding, found.rule, found.judged_on) == ("effusion", rule, "test")
    assert info.warnings == [
        f"effusion is told by {rule} alone (AUROC {found.strength:.2f} on {found.judged_on}): "
        "a model can score without looking at the lungs."
    ]


def test_a_rule_is_judged_on_the_most_held_out_split_with_enough_cases(tmp_path):
    rows = make_rows(tmp_path / "raw", images=300)
    found = {s.finding: s for s in shard_info(pack(rows, tmp_path / "one")).shortcuts if s.rule == "sex"}
    assert found["effusion"].judged_on == "test"
    assert found["effusion"].strength == found["effusion"].auroc["test"]
    few = [row for number, row in enumerate(rows) if row.split != "test" or number % 4 == 0]
    assert {s.judged_on for s in shard_info(pack(few, tmp_path / "two")).shortcuts if s.finding == "effusion"} == {
        "val"
    }
    train = [row for row in rows if row.split == "train"]
    info = shard_info(pack(train, tmp_path / "three"))
    assert {s.judged_on for s in info.shortcuts if s.finding == "effusion"} == {"train"}
    assert not info.warnings
    none = shard_info(pack(train[:30], tmp_path / "four"))
    assert {(s.judged_on, s.strength) for s in none.shortcuts} == {(None, None)}


def test_images_of_one_patient_are_one_case_and_in_one_half(tmp_path):
    # Eight patients whose age is known, with 30 images each, all of one value: by chance age tells the value.
    few = {
        "split": lambda f, rng: "train",
        "patient": lambda f, rng: f"q{rng.integers(8)}",
        "findings": lambda f, rng: {"effusion": int(f["patient"][1:]) % 2},
        "age": lambda f, rng: 10 * int(f["patient"][1:]),
    }
    info = shard_info(pack(make_rows(tmp_path / "raw", **few), tmp_path / "shards"))
    by_age = next(shortcut for shortcut in info.shortcuts if shortcut.rule == "age")
    assert (by_age.positives["train"], by_age.negatives["train"]) == (4, 4)
    assert by_age.judged_on is None
    assert by_age.auroc["train"] == 0.5, "no age is in both halves"
    assert info.warnings == []


def test_a_folder_of_the_first_format_is_told_without_its_sources(plain, tmp_path):
    info, now = shard_info(as_format_1(plain, tmp_path / "old")), shard_info(plain)
    for split, part in info.splits.items():
        assert part.origin == part.kind == part.transfer_syntax == part.bits == {}
        assert part.findings == now.splits[split].findings
        assert part.intensities == now.splits[split].intensities
    assert {shortcut.rule for shortcut in info.shortcuts} == set(RULES) - {"origin", "file type"}


def test_a_folder_without_training_samples_is_warned_of(tmp_path, plain, caplog):
    shards = pack(make_rows(tmp_path / "raw", images=9, split=lambda f, rng: "test"), tmp_path / "shards")
    sentence = "Toy has no training samples: it serves to test, and not to train."
    assert [record.getMessage() for record in caplog.records if sentence in record.getMessage()]
    assert sentence in shard_info(shards, images=0).warnings
    assert not any("no training" in warning for warning in shard_info(plain, images=0).warnings)


# --- several folders


def pairs_of(*folders: Path, images: int = 200) -> list[Pair]:
    return compare_folders([read_contents(folder, images) for folder in folders])


def test_patients_in_two_folders_are_found_where_namespace_and_key_agree(tmp_path):
    rows = make_rows(tmp_path / "raw", images=60)
    patients = sorted({row.patient for row in rows}, key=lambda patient: int(patient[1:]))
    first = [row for row in rows if row.patient in patients[:40]]
    moved = {"train": "test", "val": "val", "test": "test"}
    later = make_rows(tmp_path / "later", images=60, seed=1, split=lambda f, rng: moved[f["split"]])
    second = [row for row in later if row.patient in patients[20:]]
    one = pack(first, tmp_path / "one", name="release1")
    two = pack(second, tmp_path / "two", name="release2")
    (pair,) = pairs_of(one, two)
    assert (pair.first, pair.second) == ("release1", "release2")
    both = {row.patient for row in first} & {row.patient for row in second}
    trained = {row.patient for row in first if row.split == "train" and row.patient in both}
    assert (pair.patients.count, pair.patients.crossing) == (len(both), len(trained)) == (20, 12)
    assert (
        "release1 and release2 share 20 patients, 12 of them in train of one and in val or test of the other."
        in pair.warnings
    )
    other_key = pack(second, tmp_path / "three", name="release2", id_key=tmp_path / "other.key")
    (pair,) = pairs_of(one, other_key)
    assert pair.patients is None
    assert any("were packed with different id keys" in warning for warning in pair.warnings)
    elsewhere = pack(second, tmp_path / "four", name="release2", namespace="elsewhere")
    (pair,) = pairs_of(one, elsewhere)
    assert pair.patients is None
    assert not pair.warnings


def test_patients_are_not_compared_where_a_source_does_not_know_them(tmp_path):
    rows = make_rows(tmp_path / "raw", images=30)
    known = pack(rows, tmp_path / "known", name="known")
    unknown = pack(rows, tmp_path / "unknown", name="unknown", patients_known=False)
    for folders in ((known, unknown), (unknown, known)):
        (pair,) = pairs_of(*folders, images=0)
        assert pair.patients is None
        assert "unknown has no ids of patients, so those it shares with others cannot be told." in pair.notes
        assert not any("patients" in warning for warning in pair.warnings)
    told = CliRunner().invoke(app, ["shards", "info", str(known), str(unknown), "--images", "0"]).output
    assert "not comparable" in told and "30 samples of unknown patients" in told


@pytest.mark.parametrize(("name", "known"), [("nih14", True), ("vindr_cxr", False)])
def test_a_manifest_says_whether_the_source_knows_its_patients(tmp_path, name, known):
    write_phantoms(name, tmp_path / "raw", patients=4, seed=0, difficulty=0.5, size=48, workers=1, traps=False)
    options = PackOptions(size=32, id_key=tmp_path / "id.key", max_reject=1)
    manifest = pack_dataset(read_facts(name), tmp_path / "raw", tmp_path / "shards", options, shown=False)
    assert manifest.patients_known == read_manifest(tmp_path / "shards").patients_known == known


def test_equal_images_are_found_where_folders_were_packed_alike(tmp_path):
    rows = make_rows(tmp_path / "raw", images=40)
    copies = [row for row in rows if row.split == "train"][:7]
    moved = [row.__class__(**{**vars(row), "split": "test", "patient": f"q{row.patient}"}) for row in copies[:3]]
    others = make_rows(tmp_path / "others", images=20, seed=1)
    one = pack(rows, tmp_path / "one", name="one", namespace="one")
    two = pack([*others, *_renamed(copies[3:]), *_renamed(moved)], tmp_path / "two", name="two", namespace="two")
    (pair,) = pairs_of(one, two, images=0)
    assert (pair.images.count, pair.images.crossing) == (7, 3)
    assert pair.warnings == [
        "one and two share 7 images, equal to the last byte, 3 of them in train of one and in val or test of the other."
    ]
    told = {"burned_in_text": "flag", "projection": "frontal"}
    policy = pack(_renamed(copies), tmp_path / "policy", name="policy", namespace="policy", **told)
    frontal = sum(row.projection != "unknown" for row in copies)
    assert pairs_of(one, policy, images=0)[0].images.count >= frontal > 0
    smaller = pack(_renamed(copies), tmp_path / "small", name="small", namespace="small", size=16)
    (pair,) = pairs_of(one, smaller, images=0)
    assert pair.images is None
    assert any("packed in different ways" in note for note in pair.notes)


def _renamed(rows: list[Row]) -> list[Row]:
    return [row.__class__(**{**vars(row), "source": f"copy of {row.source}"}) for row in rows]


def test_overlaps_that_fact_files_know_are_warned_of_once_with_what_both_say(tmp_path):
    told = {f.name: f.overlaps for f in list_facts()}
    here, there = next((a, b) for a in told for b in told[a] if a in told.get(b, {}))
    ways = {f"{here} says of {there}: {told[here][there]}", f"{there} says of {here}: {told[there][here]}"}
    rows = make_rows(tmp_path / "raw", images=10)
    folders = [pack(rows, tmp_path / name, name=name, namespace=name) for name in (here, there)]
    for one, two in itertools.permutations(folders):
        (pair,) = pairs_of(one, two, images=0)
        (warning,) = [warning for warning in pair.warnings if "known to overlap" in warning]
        assert all(how in warning for how in ways) and len(pair.known) == 2
    info = shard_info(folders[0], images=0)
    assert info.overlaps[there] == told[here][there]
    assert info.overlaps == known_overlaps(info.manifest)


def test_a_dataset_whose_facts_are_not_here_is_a_note(tmp_path):
    rows = make_rows(tmp_path / "raw", images=10)
    folders = [pack(rows, tmp_path / name, name=name, namespace=name) for name in ("kermany", "ward_7")]
    (pair,) = pairs_of(*folders, images=0)
    assert not pair.known
    assert any("ward_7 was packed with a fact file that does not come with cxrdist" in note for note in pair.notes)
    assert shard_info(folders[1], images=0).overlaps is None


def test_two_datasets_that_both_overlap_with_a_third_are_noted(tmp_path):
    rows = make_rows(tmp_path / "raw", images=10)
    folders = [pack(rows, tmp_path / name, name=name, namespace=name) for name in ("kermany", "covid_chestxray")]
    (pair,) = pairs_of(*folders, images=0)
    assert "covid_qu_ex" in pair.common
    result = CliRunner().invoke(app, ["shards", "info", *map(str, folders), "--images", "0"])
    assert "Note: kermany, covid_chestxray all overlap with covid_qu_ex, so they may with each other." in result.stdout


def test_two_packs_of_one_dataset_are_told_apart_by_their_folders(tmp_path):
    rows = make_rows(tmp_path / "raw", images=10)
    folders = [pack(rows, tmp_path / name, id_key=tmp_path / "id.key") for name in ("a/x", "b", "b/x")]
    assert [(pair.first, pair.second) for pair in pairs_of(*folders[:2], images=0)] == [("x", "b")]
    (pair,) = pairs_of(folders[0], folders[2], images=0)
    assert (pair.first, pair.second) == (str(folders[0]), str(folders[2]))
    assert pair.known == ["one dataset packed twice"]
    assert pair.images.count == 10


def equalized(fields: dict, rng: np.random.Generator) -> np.ndarray:
    return cv2.equalizeHist(rng.normal(100, 20, (40, 40)).clip(0, 255).astype(np.uint8))


def test_folders_that_differ_in_their_grey_levels_are_warned_of_and_equal_ones_are_not(tmp_path):
    one = pack(make_rows(tmp_path / "raw", images=80), tmp_path / "one", name="one", namespace="one")
    two = pack(make_rows(tmp_path / "raw2", images=60, seed=1), tmp_path / "two", name="two", namespace="two")
    three = pack(
        make_rows(tmp_path / "raw3", images=60, seed=2, pixels=equalized),
        tmp_path / "three",
        name="three",
        namespace="3",
    )
    alike, apart, also_apart = pairs_of(one, two, three)
    assert alike.dataset_auroc < 0.7
    assert not alike.warnings
    for pair in (apart, also_apart):
        assert pair.dataset_auroc > 0.95
        assert any("told apart by mean and spread of the grey levels alone" in warning for warning in pair.warnings)
    grey = [
        np.concatenate(
            [np.stack([levels.mean, levels.spread], axis=1) for levels in read_contents(path).levels.values()]
        )
        for path in (one, two)
    ]
    scores, labels = [], []
    for fold in (0, 1):
        fitted = [values[1 - fold :: 2] for values in grey]
        model = QuadraticDiscriminantAnalysis(priors=[0.5, 0.5])
        model.fit(np.concatenate(fitted), np.repeat([0, 1], [len(values) for values in fitted]))
        for label, values in enumerate(grey):
            scores.append(model.decision_function(values[fold::2]))
            labels.append(np.full(len(values[fold::2]), label))
    assert alike.dataset_auroc == pytest.approx(roc_auc_score(np.concatenate(labels), np.concatenate(scores)), abs=0.01)
    (few,) = pairs_of(one, two, images=5)
    assert few.dataset_auroc is None


# --- the command


def test_the_command_tells_of_one_folder_and_of_several(plain, tmp_path):
    origin = {"origin": lambda fields, rng: rng.choice(ORIGINS[:2] if fields["findings"]["effusion"] else ORIGINS[2:])}
    other = pack(make_rows(tmp_path / "raw", seed=3, **origin), tmp_path / "covid", name="covid", namespace="covid")

    def run(*args: object) -> str:
        result = CliRunner().invoke(app, ["shards", "info", *map(str, args)])
        assert result.exit_code == 0, result.output
        return result.stdout

    alone = json.loads(run(plain, "--json"))
    assert ShardInfo.model_validate(alone) == shard_info(plain)
    both = json.loads(run(plain, other, "--json", "--images", "0"))
    assert list(both) == ["folders", "pairs"]
    assert ShardInfo.model_validate(both["folders"][str(other)]) == shard_info(other, images=0)
    text = run(plain, other)
    for told in ("Toy: 260 samples of 260 patients", "grey levels", "jpeg ", "rsna ", "effusion", "toy + covid"):
        assert told in text
    assert "Warning: effusion: the label is the source." in text
    assert "Warning:" not in run(plain)
    assert "grey levels" not in run(plain, "--images", "0")


def test_a_folder_named_twice_is_refused(plain):
    result = CliRunner().invoke(app, ["shards", "info", str(plain), str(plain / ".." / plain.name)])
    assert result.exit_code == 2 or "must be named once" in str(result.exception)
