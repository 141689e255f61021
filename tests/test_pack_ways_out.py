"""A pack that cannot go on says what to do, and says what fits."""

import shutil
from pathlib import Path

import pytest

from cxrdist.config import write_yaml
from cxrdist.datasets import read_facts
from cxrdist.datasets.records import Import, Reject
from cxrdist.datasets.shard_format import read_manifest
from cxrdist.errors import REJECT_REASONS, UserError
from cxrdist.pack import PackOptions, pack_dataset, pack_rows, repair_dataset
from cxrdist.pack.plan import DatasetName, recipe_of
from cxrdist.pack.ways_out import OF_REASON, refuse_difference, repair_command, way_out_of_rejects
from cxrdist.phantom import write_phantoms
from tests.helpers import make_import

TOY = DatasetName("toy", "Toy", "toy", "0" * 64)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("raw") / "nih"
    write_phantoms("nih14", root, patients=4, seed=1, difficulty=0.0, size=48, workers=1, traps=False)
    return root


@pytest.fixture
def packed(raw, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    pack_dataset(read_facts("nih14"), raw, tmp_path / "shards", PackOptions(size=32), shown=False)
    return tmp_path / "shards"


@pytest.mark.parametrize(
    ("reason", "part"),
    [
        ("projection_filtered", "`--projection all`"),
        ("missing_file", "`layout.match_parts` and `layout.suffixes`"),
        ("excluded_by_source", "`splits`, `keep` and `drop`"),
        ("no_label_row", "`labels` and `layout.joins`"),
    ],
)
def test_nothing_to_pack_says_what_to_look_at_by_the_reason_of_most(tmp_path, reason, part):
    rejects = [Reject(f"{number}.png", reason) for number in range(3)] + [Reject("x.png", "duplicate_row")]
    with pytest.raises(UserError, match="at least one image") as error:
        pack_rows(TOY, Import([], rejects), tmp_path / "out", PackOptions(id_key=tmp_path / "id.key"), shown=False)
    assert part in str(error.value)
    others = [text for other, text in OF_REASON.items() if other != reason]
    assert not any(text in str(error.value) for text in others)


def test_only_rejects_count_those_of_the_importer_as_well(tmp_path):
    found = make_import(tmp_path / "raw", images=2)
    for row in found.rows:
        row.path.write_bytes(b"no image")
    left = [Reject(f"{number}.png", "projection_filtered") for number in range(5)]
    options = PackOptions(id_key=tmp_path / "id.key", max_reject=1)
    with pytest.raises(UserError, match=r"got only rejects: 5 projection_filtered, .*`--projection all`"):
        pack_rows(TOY, Import(found.rows, left), tmp_path / "out", options, shown=False)


def test_too_many_missing_files_say_how_names_find_files(tmp_path):
    found = make_import(tmp_path / "raw", images=4)
    shutil.rmtree(tmp_path / "raw")
    with pytest.raises(UserError, match=r"`--max-reject`.*`layout\.match_parts`"):
        pack_rows(TOY, found, tmp_path / "out", PackOptions(id_key=tmp_path / "id.key"), shown=False)


def test_reasons_without_a_majority_have_a_way_out_as_well():
    assert "`--root`" in way_out_of_rejects({"missing_file": 2, "no_label_row": 2})
    assert "`--root`" in way_out_of_rejects({})
    assert set(OF_REASON) < set(REJECT_REASONS)


@pytest.mark.parametrize(
    ("changed", "shown", "way"),
    [
        ({"size": 7}, "size 32 -> 7", "give the same `--size`."),
        ({"declared_text": "mask", "burned_in_text": "mask"}, "mask", "give the same `--burned-in-text`."),
        (
            {"input files": "f" * 64},
            "input files",
            "give the same `--root` folders, unchanged, from the same level and",
        ),
        ({"fact file": "f" * 64, "input files": "f" * 64}, "fact file", "the same fact file, `--variant` and `--set`."),
        ({"id key": "1", "fact file": "f" * 64, "input files": "f" * 64}, "id key", "with (`--id-key`)."),
        ({"code version": "9.9"}, "code version", "use the version of cxrdist that it was packed with."),
        ({"size": 7, "format": "png"}, "format", "`--size`, and give the same `--format`."),
    ],
)
def test_every_difference_has_its_own_way_back(packed, changed, shown, way):
    old = recipe_of(read_manifest(packed))
    with pytest.raises(UserError) as error:
        refuse_difference(old, old | changed, packed)
    assert shown in str(error.value) and way in str(error.value)
    assert "delete" not in str(error.value)
    if "id key" in changed:
        assert "fact file" not in str(error.value) and "`--root`" not in str(error.value)


def test_every_part_of_a_recipe_has_a_way_back(packed):
    old = recipe_of(read_manifest(packed))
    for name in old:
        with pytest.raises(UserError, match=r"To go on with this one, (give|take|use|name) "):
            refuse_difference(old, old | {name: "?"}, packed)


def test_roots_in_another_order_or_from_another_level_are_told(raw, tmp_path):
    first, second = tmp_path / "tables", tmp_path / "images"
    shutil.copytree(raw, first)
    second.mkdir()
    for folder in [path for path in first.iterdir() if path.is_dir()]:
        shutil.move(folder, second / folder.name)
    options = PackOptions(size=32, id_key=tmp_path / "id.key")
    manifest = pack_dataset(read_facts("nih14"), [first, second], tmp_path / "shards", options, shown=False)
    (tmp_path / "shards" / manifest.shards[0].name).unlink()
    for roots in ([second, first], [tmp_path]):
        with pytest.raises(UserError, match=r"the same `--root` folders, .* in the same order"):
            repair_dataset(read_facts("nih14"), roots, tmp_path / "shards", id_key=options.id_key, shown=False)
    repair_dataset(read_facts("nih14"), [first, second], tmp_path / "shards", id_key=options.id_key, shown=False)


def test_the_command_that_mends_names_the_options_that_are_needed(packed, raw, tmp_path):
    assert repair_command(packed, read_manifest(packed)) == f"cxrdist shards repair {packed} --root RAW"
    tree = read_facts("nih14").tree() | {"name": "my_nih"}
    del tree["variant"], tree["changes"], tree["variants"]
    write_yaml(tree, tmp_path / "mine.yaml")
    out, options = tmp_path / "own", PackOptions(size=32, id_key=tmp_path / "id.key")
    own = pack_dataset(read_facts(str(tmp_path / "mine.yaml")), raw, out, options, shown=False)
    assert repair_command(out, own).endswith("--root RAW --name FACTS.yaml --id-key KEY")
