"""What pack decides about reading images: hints of the dataset, equalisation, text in the pixels, projections."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset as wds

from cxrdist.datasets import read_facts
from cxrdist.datasets.records import Import, Row
from cxrdist.datasets.shard_format import Manifest, read_manifest
from cxrdist.dicom import PixelHints, RawImage, quantise, read_radiograph
from cxrdist.errors import UsageError, UserError
from cxrdist.pack import PackOptions, pack_dataset, pack_rows, repair_dataset
from cxrdist.pack.plan import DatasetName
from cxrdist.pack.verify import verify_shards
from tests.helpers import make_dicom

TOY = DatasetName("toy", "Toy", "toy", "0" * 64)


def picture(seed=0, shape=(240, 300)):
    """Return (H, W) uint8 of a soft blob in noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    blob = 120 * np.exp(-((rows - 120) ** 2 + (columns - 100 - 20 * seed) ** 2) / 8000)
    return np.clip(40 + blob + rng.normal(0, 4, shape), 0, 255).astype(np.uint8)


def row(path: Path, **changes) -> Row:
    return replace(Row(path.name, path, path.name, path.name, "train", {"effusion": 1}, projection="PA"), **changes)


def pack(folder: Path, rows: list[Row], *, dataset=TOY, out="shards", **options) -> Manifest:
    chosen = PackOptions(**{"size": 64, "format": "png", "id_key": folder / "id.key", "max_reject": 1, **options})
    manifest = pack_rows(dataset, Import(rows, []), folder / out, chosen, shown=False)
    assert not verify_shards(folder / out)
    return manifest


def samples(shards: Path) -> list[tuple[np.ndarray, dict]]:
    return [
        (cv2.imdecode(np.frombuffer(sample["png"], np.uint8), cv2.IMREAD_UNCHANGED), json.loads(sample["json"]))
        for tar in sorted(shards.glob("*.tar"))
        for sample in wds.WebDataset(str(tar), shardshuffle=False)
    ]


@pytest.fixture
def pictures(tmp_path):
    """Two plain images and one with a name burned into a corner."""
    paths = [tmp_path / f"source{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        image = cv2.resize(picture(number), (1000, 800))
        if number == 2:
            cv2.putText(image, "DOE JANE 12.03.1961", (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 1.4, 255, 3, cv2.LINE_AA)
        cv2.imwrite(str(path), image)
    return paths


@pytest.mark.parametrize("equalize", ["none", "global", "clahe", "tayebi2024"])
def test_the_shards_hold_what_reading_gives(tmp_path, pictures, equalize):
    manifest = pack(tmp_path, [row(pictures[0])], equalize=equalize)
    assert manifest.preprocessing.equalize == equalize
    [(image, fields)] = samples(tmp_path / "shards")
    expected = read_radiograph(pictures[0], size=64, equalize=equalize).pixels
    np.testing.assert_array_equal(image, quantise(expected, 8))
    assert fields["source"].get("equalize", "none") == equalize
    assert image.shape == ((64, 64) if equalize == "tayebi2024" else (64, 80))


def test_equalised_images_have_8_bits(tmp_path):
    with pytest.raises(UsageError, match="`bits` 16 needs `equalize` none, got global"):
        PackOptions.build({"bits": 16, "format": "png", "equalize": "global"}, where="the options")


def test_what_the_dataset_knows_of_a_file_is_used_and_part_of_the_recipe(tmp_path):
    film = np.linspace(0, 4095, 40 * 50).astype(">u2").reshape(40, 50)
    (tmp_path / "a.IMG").write_bytes(film.tobytes())
    hints = PixelHints(raw=RawImage(40, 50, 12), invert=True)
    pack(tmp_path, [row(tmp_path / "a.IMG", pixels=hints)], size=40)
    [(image, fields)] = samples(tmp_path / "shards")
    np.testing.assert_array_equal(image, np.rint(255 * (1 - film / 4095)).astype(np.uint8))
    assert fields["source"] == {"kind": "raw", "bits": 12, "bits_stored": 12, "voi": "none"}
    with pytest.raises(UserError, match="got another: input files"):
        pack(tmp_path, [row(tmp_path / "a.IMG", pixels=replace(hints, invert=False))], size=40)


@pytest.mark.parametrize(
    ("named", "default", "kept", "word"),
    [
        (None, "reject", 2, None),
        (None, "flag", 3, "seen"),
        (None, "mask", 3, "masked"),
        ("reject", "flag", 2, None),
        ("flag", "reject", 3, "seen"),
        ("mask", "reject", 3, "masked"),
    ],
)
def test_text_that_is_seen_is_treated_as_the_user_says_or_else_the_dataset(
    tmp_path, pictures, named, default, kept, word
):
    dataset = replace(TOY, burned_in_text=default)
    manifest = pack(tmp_path, [row(path) for path in pictures], dataset=dataset, burned_in_text=named)
    assert manifest.samples == kept
    assert manifest.rejects == ({"burned_in_text": 1} if kept == 2 else {})
    assert manifest.preprocessing.burned_in_text == (named or default)
    assert manifest.preprocessing.declared_text == (named or "reject")
    words = [fields["source"].get("burned_in_text") for _, fields in samples(tmp_path / "shards")]
    assert sorted(word for word in words if word) == ([word] if word else [])


def test_masked_text_is_black_and_the_rest_is_as_before(tmp_path, pictures):
    pack(tmp_path, [row(pictures[2])], burned_in_text="flag", size=800, out="seen")
    pack(tmp_path, [row(pictures[2])], burned_in_text="mask", size=800, out="masked")
    [(seen, _)], [(masked, _)] = samples(tmp_path / "seen"), samples(tmp_path / "masked")
    different = seen != masked
    assert (masked[different] == 0).all() and different[:80].any() and not different[200:].any()
    assert masked.max() < 255, "the letters were the brightest"


@pytest.mark.parametrize(("named", "kept"), [(None, 0), ("flag", 1), ("mask", 0)])
def test_a_header_that_declares_text_rejects_the_image_unless_the_user_names_a_policy(tmp_path, pictures, named, kept):
    declared = make_dicom(tmp_path / "a.dcm", picture(), BurnedInAnnotation="YES")
    rows = [row(declared), row(pictures[0])]
    manifest = pack(tmp_path, rows, dataset=replace(TOY, burned_in_text="flag"), burned_in_text=named)
    assert manifest.samples == 1 + kept


@pytest.mark.parametrize(
    ("notes", "view", "projection", "expected"),
    [
        ({"projection_from_header": True}, "PA", "frontal", "PA"),
        ({"projection_from_header": True}, "LL", "frontal", None),
        ({"projection_from_header": True}, "", "frontal", None),
        ({"projection_from_header": True}, "", "all", "unknown"),
        ({}, "", "frontal", "unknown"),
    ],
)
def test_where_only_the_header_knows_the_projection_an_image_without_is_not_frontal(
    tmp_path, pictures, notes, view, projection, expected
):
    path = make_dicom(tmp_path / "a.dcm", picture(), ViewPosition=view)
    rows = [row(path, projection="unknown", notes=notes), row(pictures[0])]
    manifest = pack(tmp_path, rows, projection=projection)
    assert manifest.rejects == ({} if expected else {"projection_filtered": 1})
    found = [fields for _, fields in samples(tmp_path / "shards") if fields["source"]["kind"] == "dicom"]
    assert [fields["projection"] for fields in found] == ([expected] if expected else [])
    assert all("projection_from_header" not in fields["source"] for fields in found)


def test_a_manifest_from_before_these_choices_is_still_read(tmp_path, pictures):
    pack(tmp_path, [row(pictures[0])])
    path = tmp_path / "shards" / "manifest.json"
    tree = json.loads(path.read_bytes())
    for name in ("equalize", "burned_in_text", "declared_text"):
        del tree["preprocessing"][name]
    path.write_text(json.dumps(tree))
    how = read_manifest(tmp_path / "shards").preprocessing
    assert (how.equalize, how.burned_in_text, how.declared_text) == ("none", None, "reject")


@pytest.mark.parametrize(
    "chosen",
    [
        {}, {"burned_in_text": "flag"}, {"burned_in_text": "mask", "equalize": "global"}, {"equalize": "tayebi2024"},
        {"format": "jpeg", "equalize": "clahe", "burned_in_text": "reject"},
    ],
)  # fmt: skip
def test_repair_takes_every_choice_from_the_manifest(tmp_path, chosen):
    for number, name in enumerate(("NORMAL/IM-0001-0001", "PNEUMONIA/person1_virus_1", "PNEUMONIA/person2_virus_2")):
        path = tmp_path / "raw" / "train" / f"{name}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(number))
    facts, key, shards = read_facts("kermany"), tmp_path / "id.key", tmp_path / "shards"
    options = PackOptions(**{"size": 64, "format": "png", "id_key": key, **chosen})
    manifest = pack_dataset(facts, tmp_path / "raw", shards, options, shown=False)
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    for shard in manifest.shards:
        (shards / shard.name).unlink()
    assert repair_dataset(facts, tmp_path / "raw", shards, id_key=key, shown=False) == manifest
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before
