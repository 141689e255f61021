"""What a shard folder holds, whoever reads it, and how its bytes come about."""

import csv
import json
import os
import pickle
import random
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from cxrdist.datasets.records import Import, Reject, Row
from cxrdist.datasets.shard_format import FORMAT_VERSION, KEY, read_index, read_manifest
from cxrdist.errors import UsageError, UserError
from cxrdist.pack import PackOptions, pack_rows
from cxrdist.pack.plan import DatasetName
from cxrdist.pack.verify import verify_shards
from tests.helpers import make_import

TOY = DatasetName("toy", "Toy", "toy", "0" * 64)


def options(folder: Path, **changes: object) -> PackOptions:
    return PackOptions.build(
        {"size": 32, "id_key": folder / "private" / "id.key", "samples_per_shard": 5, **changes}, where="test"
    )


def pack(found: Import, folder: Path, out: str = "shards", **changes: object) -> Path:
    pack_rows(TOY, found, folder / out, options(folder, **changes), shown=False)
    return folder / out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rejects_of(shards: Path) -> list[dict[str, str]]:
    with (shards / "rejects.csv").open() as file:
        return list(csv.DictReader(file))


# --- bytes


@pytest.mark.parametrize("changes", [{}, {"format": "png", "bits": 16}])
def test_the_same_input_gives_the_same_bytes_whatever_the_workers_and_the_order_of_rows(tmp_path, changes):
    found = make_import(tmp_path / "raw")
    one = pack(found, tmp_path, "one", **changes)
    shuffled = random.Random(3).sample(found.rows, len(found.rows))
    two = pack(Import(shuffled, []), tmp_path, "two", workers=2, **changes)
    assert contents(one) == contents(two)
    assert not verify_shards(one, shown=False)


KILL = """
import os, pickle, signal, sys
from pathlib import Path
import cxrdist.pack.build, cxrdist.pack.finish, cxrdist.pack.run as run

found, out, options, dataset, (module, name), calls = pickle.load(open(sys.argv[1], "rb"))
owner = sys.modules[module]
if "." in name:
    owner, name = getattr(owner, name.split(".")[0]), name.split(".")[1]
original = getattr(owner, name)

def killing(*args, **kwargs):
    global calls
    calls -= 1
    if calls < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(owner, name, killing)
run.pack_rows(dataset, found, out, options, shown=False)
"""


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        ("cxrdist.pack.build", "TarWriter.add", 15),
        ("cxrdist.pack.build", "write_file", 3),
        ("cxrdist.pack.finish", "move_shard", 2),
        ("cxrdist.pack.run", "write_manifest", 0),
        ("cxrdist.pack.run", "remove_work_folder", 0),
    ],
)
def test_a_pack_killed_at_any_step_goes_on_to_the_same_bytes(tmp_path, module, name, calls):
    found = make_import(tmp_path / "raw")
    rows = [*found.rows, replace(found.rows[0], source="again.png", split="test")]  # a duplicate: one shard rewritten
    found = Import(rows, [Reject("gone.png", "no_label_row")])
    whole = pack(found, tmp_path, "whole")
    job = tmp_path / "job.pickle"
    out = tmp_path / "killed"
    job.write_bytes(pickle.dumps((found, out, options(tmp_path), TOY, (module, name), calls)))
    script = tmp_path / "kill.py"
    script.write_text(KILL)
    assert subprocess.run([sys.executable, script, job], check=False).returncode == -9
    if name != "remove_work_folder":
        with pytest.raises(UserError, match="is not finished: packing was interrupted"):
            read_manifest(out)
    pack(found, tmp_path, "killed")
    assert contents(out) == contents(whole)


def test_finished_shards_are_not_built_again(tmp_path):
    found = make_import(tmp_path / "raw")
    built = []

    def stopping(function: Callable, items: list):
        for number, item in enumerate(items):
            if number == 2 and not built[2:]:
                raise KeyboardInterrupt
            built.append(item.shard.name)
            yield function(item)

    for _ in range(2):
        try:
            pack_rows(TOY, found, tmp_path / "shards", options(tmp_path), spread=stopping, shown=False)
        except KeyboardInterrupt:
            built.append("stop")
    planned = sorted(name for name in built if name != "stop")
    assert "stop" in built
    assert planned == sorted(set(planned)), "a shard was built twice"
    assert not verify_shards(tmp_path / "shards", shown=False)


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\nfrom cxrdist.dispatch import process_map\n"
        "def work(n):\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n    list(process_map(2)(work, range(2)))\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("finished", [False, True])
def test_another_pack_in_the_same_folder_is_refused_and_the_difference_named(tmp_path, finished):
    found = make_import(tmp_path / "raw")
    shards = pack(found, tmp_path) if finished else tmp_path / "shards"
    if not finished:
        with pytest.raises(ZeroDivisionError):
            pack_rows(TOY, found, shards, options(tmp_path), spread=lambda f, items: 1 // 0, shown=False)
    before = contents(shards)
    with pytest.raises(UserError, match=r"must hold one pack, got another: size 32 -> 24 \["):
        pack(found, tmp_path, size=24)
    with pytest.raises(UserError, match=r"got another: input files \["):
        pack(Import(found.rows[1:], []), tmp_path)
    with pytest.raises(UserError, match=r"got another: .*id key"):
        pack(found, tmp_path, id_key=tmp_path / "private" / "other.key")
    assert contents(shards) == before


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    found = make_import(tmp_path / "raw")

    def second(function: Callable, items: list):
        with pytest.raises(UserError, match="Only one process may pack into"):
            pack(found, tmp_path)
        return map(function, items)

    pack_rows(TOY, found, tmp_path / "shards", options(tmp_path), spread=second, shown=False)


def test_a_folder_with_other_files_is_not_packed_into(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "thesis.doc").touch()
    with pytest.raises(UserError, match="must be new, empty, or an interrupted pack"):
        pack(make_import(tmp_path / "raw"), tmp_path)


@pytest.mark.parametrize("break_it", [Path.unlink, lambda path: os.truncate(path, 700)])
def test_packing_a_finished_folder_again_rebuilds_what_is_broken(tmp_path, break_it):
    found = make_import(tmp_path / "raw")
    shards = pack(found, tmp_path)
    before = contents(shards)
    for name in ("toy-train-000001.tar", "rejects.csv"):
        break_it(shards / name)
        assert verify_shards(shards, shown=False)
        pack(found, tmp_path)
        assert contents(shards) == before


# --- what readers find


@pytest.mark.parametrize(("form", "extension"), [("jpeg", "jpg"), ("png", "png")])
def test_webdataset_reads_every_sample_unchanged(tmp_path, form, extension):
    found = make_import(tmp_path / "raw")
    shards = pack(found, tmp_path, format=form)
    index = read_index(shards).set_index("key")
    seen = []
    for path in sorted(shards.glob("*.tar")):
        for sample in wds.WebDataset(str(path), shardshuffle=False):
            line = index.loc[sample["__key__"]]
            seen.append(sample["__key__"])
            fields = json.loads(sample["json"])
            with path.open("rb") as file:
                for member, name in ((extension, "image"), ("json", "json")):
                    place = os.pread(file.fileno(), line[f"{name}_bytes"], line[f"{name}_offset"])
                    assert place == sample[member]
            pixels = cv2.imdecode(np.frombuffer(sample[extension], np.uint8), cv2.IMREAD_UNCHANGED)
            assert pixels.shape == (fields["height"], fields["width"]) == (line["height"], line["width"])
            assert line["shard"] == path.name
    assert seen == sorted(seen, key=lambda key: (index.loc[key, "shard"], key))
    assert sorted(seen) == sorted(index.index)
    assert len(seen) == len(found.rows)


def test_tar_lists_pairs_of_members_with_fixed_headers(tmp_path):
    shards = pack(make_import(tmp_path / "raw"), tmp_path)
    listing = subprocess.run(
        ["tar", "tvf", shards / "toy-train-000000.tar", "--utc"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    keys = read_index(shards).query("shard == 'toy-train-000000.tar'")["key"]
    assert [line.split()[-1] for line in listing] == [f"{key}.{end}" for key in keys for end in ("jpg", "json")]
    assert all(line.startswith("-r--r--r-- 0/0") and "1970-01-01 00:00" in line for line in listing)
    with tarfile.open(shards / "toy-train-000000.tar") as tar:
        assert {(member.uname, member.gname) for member in tar} == {("", "")}


def test_timm_and_open_clip_find_their_own_counts(tmp_path):
    shards = pack(make_import(tmp_path / "raw"), tmp_path)
    manifest = read_manifest(shards)
    info = json.loads((shards / "_info.json").read_text())["splits"]
    for split, count in manifest.splits.items():
        assert info[split]["num_samples"] == sum(info[split]["shard_lengths"]) == count
        assert info[split]["filenames"] == [shard.name for shard in manifest.shards_of(split)]
    assert json.loads((shards / "sizes.json").read_text()) == {shard.name: shard.samples for shard in manifest.shards}


def test_uid_with_dots_never_becomes_a_key(tmp_path):
    found = make_import(tmp_path / "raw", images=3)
    rows = [replace(row, source=f"1.2.840.10008.{number}.dcm") for number, row in enumerate(found.rows)]
    keys = read_index(pack(Import(rows, []), tmp_path))["key"]
    assert keys.is_unique
    assert all(KEY.fullmatch(key) for key in keys)


def test_all_four_values_of_a_finding_survive(tmp_path):
    found = make_import(tmp_path / "raw")
    shards = pack(found, tmp_path)
    wanted = sorted(str(row.findings["cardiomegaly"]) for row in found.rows)
    index = read_index(shards)
    assert str(index["y_cardiomegaly"].dtype) == "Int8"
    assert str(index["age"].dtype) == "Int16"
    column = [
        None if value is None else int(value)
        for value in index["y_cardiomegaly"].astype(object).where(index["y_cardiomegaly"].notna(), None)
    ]
    assert sorted(map(str, column)) == wanted
    told = [
        json.loads(sample["json"])["findings"]["cardiomegaly"]
        for path in shards.glob("*.tar")
        for sample in wds.WebDataset(str(path), shardshuffle=False)
    ]
    assert sorted(map(str, told)) == wanted


def test_sixteen_bits_are_kept_to_the_last_and_nothing_is_enlarged(tmp_path):
    values = np.arange(30 * 20, dtype=np.uint16).reshape(30, 20) * 109
    cv2.imwrite(str(tmp_path / "deep.png"), values)
    row = Row("deep.png", tmp_path / "deep.png", "a", "b", "train", {"effusion": 1})
    shards = pack(Import([row], []), tmp_path, format="png", bits=16, size=512)
    (sample,) = wds.WebDataset(str(shards / "toy-train-000000.tar"), shardshuffle=False)
    assert np.array_equal(cv2.imdecode(np.frombuffer(sample["png"], np.uint8), cv2.IMREAD_UNCHANGED), values)
    with pytest.raises(UsageError, match="`bits` 16 needs `format` png"):
        options(tmp_path, bits=16)


# --- counts


def test_rows_in_are_samples_plus_rejects_whatever_happens_to_them(tmp_path):
    found = make_import(tmp_path / "raw", images=30)
    rows = found.rows
    rows[0].path.unlink()
    rows[1].path.write_bytes(rows[1].path.read_bytes()[:300])
    cv2.imwrite(str(rows[2].path), np.full((40, 40), 7, np.uint8))
    rows[3].path.write_bytes(rows[20].path.read_bytes())
    rows.append(rows[9])
    found = Import(rows, [Reject("x.png", "no_label_row"), Reject("y.png", "projection_filtered", "lateral")])
    shards = pack(found, tmp_path, max_reject=0.5)
    manifest = read_manifest(shards)
    assert manifest.rows == 33 == manifest.samples + sum(manifest.rejects.values())
    assert manifest.rejects == {
        "constant_image": 1,
        "duplicate_pixels": 1,
        "duplicate_row": 1,
        "missing_file": 1,
        "no_label_row": 1,
        "projection_filtered": 1,
        "unreadable": 1,
    }
    assert len(rejects_of(shards)) == 7
    assert not verify_shards(shards, shown=False)
    mapped = pq.read_table(tmp_path / "private" / "toy.idmap.parquet").to_pandas().set_index("source")
    assert len(mapped) == 32
    assert mapped.loc["source1.png", "reject"] == "unreadable"
    index = read_index(shards).set_index("key")
    assert index.loc[mapped.loc["source5.png", "image_id"], "patient_id"] == mapped.loc["source5.png", "patient_id"]


def test_of_equal_pixels_the_most_held_out_sample_stays_and_numbers_have_no_gap(tmp_path):
    found = make_import(tmp_path / "raw", images=16)
    train = [row for row in found.rows if row.split == "train"]
    test = [row for row in found.rows if row.split == "test"]
    copies = [replace(row, source=f"copy{number}.png", split="val") for number, row in enumerate(train)]
    again = replace(test[0], source="again.png", split="train")
    shards = pack(Import([*found.rows, *copies, again], []), tmp_path, samples_per_shard=3)
    index = read_index(shards)
    assert set(index["split"]) == {"val", "test"}, "every train image is also held out"
    manifest = read_manifest(shards)
    for split in ("val", "test"):
        names = [shard.name for shard in manifest.shards_of(split)]
        assert names == [f"toy-{split}-{number:06d}.tar" for number in range(len(names))]
    left = {line["image_id"]: line["detail"] for line in rejects_of(shards)}
    assert len(left) == len(train) + 1
    assert all(detail.removeprefix("same pixels as ") in set(index["key"]) for detail in left.values())
    assert not verify_shards(shards, shown=False)


def test_an_emptied_shard_in_the_middle_leaves_no_gap(tmp_path):
    found = make_import(tmp_path / "raw", images=40)
    first = pack(found, tmp_path, "first", samples_per_shard=3)
    index = read_index(first)
    mapped = pq.read_table(tmp_path / "private" / "toy.idmap.parquet").to_pandas().set_index("image_id")["source"]
    for key in index[index["shard"] == "toy-train-000001.tar"]["key"]:
        (tmp_path / "raw" / mapped[key]).write_bytes(b"no image")
    second = pack(found, tmp_path, "second", samples_per_shard=3, max_reject=1.0)
    names = [shard.name for shard in read_manifest(second).shards_of("train")]
    assert names == [f"toy-train-{number:06d}.tar" for number in range(len(names))]
    old = {shard.sha256 for shard in read_manifest(first).shards if shard.name != "toy-train-000001.tar"}
    assert {shard.sha256 for shard in read_manifest(second).shards} == old
    assert not verify_shards(second, shown=False)


def test_too_many_broken_images_stop_the_pack_with_counts_and_lose_nothing(tmp_path):
    found = make_import(tmp_path / "raw")
    for row in found.rows[:5]:
        row.path.write_bytes(b"no image")
    found.rows[5].path.unlink()
    with pytest.raises(UserError, match=r"At most 10\.0% of 24 images .* got \d so far: \d unreadable"):
        pack(found, tmp_path, max_reject=0.1)
    assert list((tmp_path / "shards" / ".pack").glob("*.json"))
    manifest = read_manifest(pack(found, tmp_path, max_reject=0.25))
    assert manifest.rejects == {"missing_file": 1, "unreadable": 5}


def test_choices_of_the_user_do_not_count_as_broken_images(tmp_path):
    found = make_import(tmp_path / "raw", images=4)
    filtered = [Reject(f"{number}.png", "projection_filtered") for number in range(50)]
    assert read_manifest(pack(Import(found.rows, filtered), tmp_path, max_reject=0.0)).rows == 54


def test_nothing_to_pack_is_an_error_with_the_reasons(tmp_path):
    with pytest.raises(UserError, match=r"got 0 of 1 rows .*\(no_label_row 1\)"):
        pack(Import([], [Reject("x", "no_label_row")]), tmp_path)
    found = make_import(tmp_path / "raw", images=2)
    for row in found.rows:
        row.path.write_bytes(b"no image")
    with pytest.raises(UserError, match="must keep at least one image, got only rejects: 2 unreadable"):
        pack(found, tmp_path, max_reject=1.0)


# --- private files


def test_one_key_gives_one_pseudonym_and_private_files_are_for_their_owner_only(tmp_path):
    found = make_import(tmp_path / "raw")
    first, second = pack(found, tmp_path, "first"), pack(found, tmp_path, "second", size=24)
    assert list(read_index(first)["patient_id"]) == list(read_index(second)["patient_id"])
    other = pack(found, tmp_path, "third", id_key=tmp_path / "private" / "other.key")
    assert not set(read_index(first)["patient_id"]) & set(read_index(other)["patient_id"])
    private = tmp_path / "private"
    assert {path.name for path in private.iterdir()} == {"id.key", "other.key", "toy.idmap.parquet"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in private.iterdir()} == {0o600}
    lines = pq.read_table(private / "toy.idmap.parquet").num_rows
    assert lines == 2 * len(found.rows), "the map of the first key must not be lost"


def test_one_patient_and_study_keep_their_images_together(tmp_path):
    index = read_index(pack(make_import(tmp_path / "raw"), tmp_path))
    assert set(index.groupby("patient_id").size()) == {2}
    assert set(index.groupby("study_id")["patient_id"].nunique()) == {1}


@pytest.mark.parametrize("option", ["id_key", "id_map"])
def test_private_files_inside_the_shard_folder_are_refused(tmp_path, option):
    found = make_import(tmp_path / "raw", images=2)
    with pytest.raises(UsageError, match="must lie outside the shard folder"):
        pack(found, tmp_path, **{option: tmp_path / "raw" / ".." / "shards" / "file"})
    assert not (tmp_path / "shards").exists()


def test_a_short_id_key_is_refused(tmp_path):
    (tmp_path / "short.key").write_text("secret\n")
    with pytest.raises(UserError, match="at least 32 characters, got 6"):
        pack(make_import(tmp_path / "raw", images=2), tmp_path, id_key=tmp_path / "short.key")


def test_without_a_named_key_the_data_folder_of_the_user_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    pack(make_import(tmp_path / "raw", images=2), tmp_path, id_key=None)
    assert sorted(path.name for path in (tmp_path / "data" / "cxrdist").iterdir()) == ["id.key", "toy.idmap.parquet"]


# --- reading the manifest


def test_what_is_no_shard_folder_says_so(tmp_path):
    with pytest.raises(UsageError, match="must exist"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is not a shard folder: .* Run `cxrdist pack`"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": FORMAT_VERSION + 1, "new": 1}))
    with pytest.raises(UserError, match=f"must be version {FORMAT_VERSION} or older, got {FORMAT_VERSION + 1}"):
        read_manifest(tmp_path)
