"""What `verify_shards` finds, and what `shard_info` counts."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxrdist.datasets.shard_format import read_index, read_manifest
from cxrdist.errors import UserError
from cxrdist.pack import PackOptions, pack_rows
from cxrdist.pack.info import shard_info
from cxrdist.pack.plan import DatasetName
from cxrdist.pack.tar import FIELDS
from cxrdist.pack.verify import verify_shards
from tests.helpers import make_import

SHARD = "toy-train-000001.tar"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    options = PackOptions(size=32, id_key=folder / "id.key", samples_per_shard=5)
    pack_rows(
        DatasetName("toy", "Toy", "toy", "0" * 64),
        make_import(folder / "raw"),
        folder / "shards",
        options,
        shown=False,
    )
    return folder / "shards"


@pytest.fixture
def shards(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def rewrite(shards: Path, change: Callable[[list[tuple[str, bytes]]], None], *, honest: bool = True, **fields) -> None:
    """Write SHARD again with changed members; an `honest` forger brings the manifest's hash in line."""
    path = shards / SHARD
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            for field, value in {**FIELDS, **fields}.items():
                setattr(info, field, value)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if honest:
        manifest = json.loads((shards / "manifest.json").read_text())
        for shard in manifest["shards"]:
            if shard["name"] == SHARD:
                shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
                shard["bytes"] = path.stat().st_size
        (shards / "manifest.json").write_text(json.dumps(manifest))


def sentences(shards: Path) -> str:
    problems = verify_shards(shards, shown=False)
    assert problems
    return "\n".join(map(str, problems))


def in_json(field: str, value: object) -> Callable[[list[tuple[str, bytes]]], None]:
    def change(members: list[tuple[str, bytes]]) -> None:
        name, data = members[1]
        members[1] = (name, json.dumps({**json.loads(data), field: value}).encode())

    return change


def test_a_fresh_folder_has_no_problem_with_one_worker_or_two(whole):
    assert verify_shards(whole, shown=False) == verify_shards(whole, workers=2, shown=False) == []


def test_a_flipped_byte_in_any_place_of_a_shard_is_found(shards):
    path = shards / SHARD
    data = path.read_bytes()
    for place in range(0, len(data), 1999):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        assert f"{SHARD}: the file has another SHA-256" in sentences(shards)


@pytest.mark.parametrize("size", [0, 100, 512, 700, 2100, -1])
def test_a_truncated_shard_gives_problems_and_no_traceback(shards, size):
    path = shards / SHARD
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    assert f"{SHARD}: the file has" in sentences(shards)


def test_a_missing_shard_is_named(shards):
    (shards / SHARD).unlink()
    assert sentences(shards) == f"{SHARD}: the file is missing."


def test_members_too_many_too_few_or_out_of_order_are_found_even_with_a_right_hash(shards):
    rewrite(shards, lambda members: members.append(("patient.txt", b"secret")))
    found = sentences(shards)
    assert "has 11 members, but two each of 5 samples" in found
    assert "patient" not in found
    rewrite(shards, lambda members: members.pop())
    rewrite(shards, lambda members: members.reverse())
    assert "members are not pairs" in sentences(shards)
    rewrite(shards, list.sort)
    assert not verify_shards(shards, shown=False)
    rewrite(shards, lambda members: members.__setitem__(slice(None), members[2:]))
    assert "the index has another key or split here" in sentences(shards)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (in_json("name", "Doe^Jane"), "the JSON has not exactly the fields"),
        (in_json("source", {"study_date": "20200101"}), "`source` has a field that is not on the allow-list"),
        (in_json("source", {"voi": "for Dr. O'Neil"}), "`source` has a field that is not on the allow-list"),
        (in_json("patient_id", "1.2.840"), "an id in the JSON is not a pseudonym"),
        (in_json("image_id", "other"), "the JSON's `image_id` is not the key"),
        (in_json("age", 97), "`age` is not null or a whole number up to 90"),
        (in_json("projection", "AP Supine"), "`projection` or `sex`"),
        (in_json("sex", "O"), "`projection` or `sex`"),
        (in_json("findings", {"effusion": 1}), "`findings` are not those of the manifest"),
        (in_json("findings", {"effusion": 3, "cardiomegaly": 1}), "a finding is not 1, 0, -1 or null"),
        (in_json("height", 7), "the image has another size than its JSON says"),
        (in_json("age", 77), "the index and the JSON differ in age"),
        (lambda m: m.__setitem__(1, (m[1][0], b"[1")), "the JSON cannot be read"),
        (lambda m: m.__setitem__(0, (m[0][0], b"no image")), "the image cannot be decoded"),
        (lambda m: m.__setitem__(0, (m[0][0], b"")), "the image cannot be decoded"),
    ],
)
def test_a_wrong_member_is_named_by_shard_and_key(shards, change, sentence):
    rewrite(shards, change)
    key = read_index(shards).query(f"shard == '{SHARD}'")["key"].iloc[0]
    lines = [line for line in sentences(shards).splitlines() if sentence in line]
    assert lines
    assert lines[0].startswith(f"{SHARD} {key}: ")


def change_index(shards: Path, **columns) -> None:
    """Write the index with other columns; the manifest's hash is brought in line."""
    path = shards / "index.parquet"
    table = pq.read_table(path)
    for name, change in columns.items():
        place = table.column_names.index(name)
        values = pa.array(map(change, table[name].to_pylist()), table.schema.field(name).type)
        table = table.set_column(place, name, values)
    pq.write_table(table, path)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (shards / "manifest.json").write_text(json.dumps(manifest))


def test_a_wrong_checksum_or_view_in_the_index_is_found(shards):
    change_index(shards, crc32=lambda crc: crc ^ 1, frontal=lambda frontal: not frontal)
    found = sentences(shards)
    assert "the image's bytes have another CRC-32 than the index says" in found
    assert "the index and the JSON differ in frontal" in found


@pytest.mark.parametrize("column", ["crc32", "frontal"])
def test_an_index_without_a_column_is_refused(shards, column):
    path = shards / "index.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(UserError, match=r"must fit its manifest, got other columns or rows.*cxrdist shards verify"):
        read_index(shards)


def test_a_member_that_tells_its_time_or_owner_is_found(shards):
    rewrite(shards, lambda members: None, mtime=1_600_000_000, uname="radiology")
    assert "time, owner or mode is not the fixed one" in sentences(shards)


def test_damaged_tables_and_strange_files_are_found(shards):
    (shards / "Jane Doe.txt").touch()
    found = sentences(shards)
    assert "1 files or folders do not belong to the shard folder" in found
    assert "Jane" not in found
    (shards / "index.parquet").write_bytes(b"PAR1")
    (shards / "rejects.csv").write_text("image_id,reason,detail\nabc,bored,\n")
    (shards / "sizes.json").unlink()
    found = sentences(shards)
    assert "the index is missing or does not fit" in found
    assert "reason 'bored' is not in the vocabulary" in found
    assert "sizes.json: the file is missing" in found
    with pytest.raises(UserError, match=r"index\.parquet .* is missing or damaged"):
        read_index(shards)


def test_a_manifest_whose_counts_do_not_add_up_is_found(shards):
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["rows"] += 1
    (shards / "manifest.json").write_text(json.dumps(manifest))
    assert "samples and rejects do not add up to 25 rows" in sentences(shards)


def test_a_patient_in_two_splits_is_found(tmp_path):
    found = make_import(tmp_path / "raw", images=12)
    shared = {row.patient for row in found.rows if row.split == "train"} & {"patient0"}
    assert shared
    for number, row in enumerate(found.rows):
        object.__setattr__(row, "patient", "patient0" if number in (0, 7) else row.patient)
    options = PackOptions(size=32, id_key=tmp_path / "id.key")
    pack_rows(DatasetName("toy", "Toy", "toy", "0" * 64), found, tmp_path / "shards", options, shown=False)
    assert "is in more than one split (1 such patients)" in sentences(tmp_path / "shards")


def test_info_counts_every_value_of_every_finding_per_split(whole):
    info = shard_info(whole)
    manifest = read_manifest(whole)
    index = read_index(whole)
    assert {split: part.samples for split, part in info.splits.items()} == manifest.splits
    assert info.patients == index["patient_id"].nunique() == 12
    assert info.bytes == sum((whole / shard.name).stat().st_size for shard in manifest.shards)
    for part in info.splits.values():
        for values in part.findings.values():
            assert values.present + values.absent + values.uncertain + values.not_mentioned == part.samples
        assert sum(part.projection.values()) == sum(part.sex.values()) == part.samples
    total = [part.findings["cardiomegaly"] for part in info.splits.values()]
    assert [sum(getattr(v, name) for v in total) for name in ("present", "absent", "uncertain", "not_mentioned")] == [
        6
    ] * 4
    assert info.splits["train"].age.known == index.query("split == 'train'")["age"].notna().sum()
