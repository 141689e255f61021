"""Whatever a user does at the command line, no name of the source comes out of it.

Looked at: every byte of every file in the shard folder, at any moment; standard output and standard error of each
command, with what decoders in C and Python's warnings print there.  The rule: no path below the root, no name of an
image, no id, date, UID or text of a header or of a table's cells, no text of a file.  Allowed are the paths that the
user typed (``--root``, ``--out``, ``--id-key`` ...) in what the user is told, but never in the shard folder; and the
names of tables that the fact file itself has.  What the user needs to find a file again lies beside the id key, in
files that only the owner can read.
"""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.planted import FACTS, Words, plant, plant_damage, plant_tables

PRIVATE = ("id.key", "toy.idmap.parquet", "toy.unknown_labels.txt")


SEVERAL = """
import json, sys
from cxrdist.cli.main import run
for arguments in json.loads(sys.argv[1]):
    try:
        run(arguments)
    except SystemExit as end:
        print(f"<ended {end.code or 0}>", flush=True)
"""
"""Runs commands one after the other: most of what a command takes is the start of Python."""


class Desk:
    """A user's desk: raw data under a telling name, a key, a place for shards."""

    def __init__(self, folder: Path, raw: Path, words: Words) -> None:
        self.words, self.folder, self.root = words, folder, folder / raw.name
        self.facts, self.key, self.out = folder / "toy.yaml", folder / "private" / "id.key", folder / "shards"
        self.facts.write_text(FACTS)
        shutil.copytree(raw, self.root)

    def run(self, *commands: tuple[object, ...], codes: list[int]) -> str:
        """Run commands, check their exit codes, and that neither they nor the shard folder tell anything."""
        typed = [[str(part) for part in command] for command in commands]
        program = ["-m", "cxrdist", *typed[0]] if len(typed) == 1 else ["-c", SEVERAL, json.dumps(typed)]
        ended = subprocess.run(
            [sys.executable, *program], capture_output=True, env=environment(), timeout=200, check=False
        )
        told = ended.stdout + b"\n" + ended.stderr
        self.check(told, [part for command in typed for part in command])
        if len(typed) == 1:
            assert [ended.returncode] == codes, told.decode()[-2000:]
        else:
            assert [int(code) for code in re.findall(rb"<ended (\d+)>", ended.stdout)] == codes, told.decode()[-4000:]
        return told.decode()

    def check(self, told: bytes, typed: list[str], *, orderly: bool = True) -> None:
        """Check what a command told; one that was not ended `orderly` leaves processes that cannot end so either."""
        for text in sorted((text for text in typed if "/" in text or "zq" in text), key=len, reverse=True):
            told = told.replace(text.encode(), b"<typed>")
        assert not orderly or b"Traceback" not in told, told.decode(errors="replace")[-3000:]
        assert not self.words.found_in(told), told.decode(errors="replace")
        assert not self.words.found_in(self.held()), "in the shard folder"

    def held(self) -> bytes:
        """Return all that a reader gets out of the shard folder, compressed tables unpacked."""
        parts = []
        for path in sorted(self.out.rglob("*")) if self.out.exists() else ():
            parts.append(path.name.encode())
            parts.append(path.read_bytes() if path.is_file() else b"")
            if path.suffix == ".parquet":
                parts += [pq.read_table(path).to_pandas().to_csv().encode(), str(pq.read_metadata(path)).encode()]
        return b"\n".join(parts)

    def pack(self, *more: object, root: Path | None = None, to: str = "") -> tuple[object, ...]:
        place = ("--root", root or self.root, "--out", self.out / to, "--id-key", self.key)
        return ("pack", self.facts, *place, "--size", 32, *more)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONWARNINGS": "always", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Path, Words]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about what is planted
        words = Words()
        raw = tmp_path_factory.mktemp("raw") / words("name of the root")
        good = plant(raw, words)
        plant_tables(raw, good + plant_damage(raw, good, words), words)
    return raw, words


@pytest.fixture
def desk(tmp_path, planted) -> Desk:
    return Desk(tmp_path, *planted)


def test_no_name_comes_out_of_packing_checking_and_mending(desk):
    told = desk.run(desk.pack("--max-reject", 0), codes=[1])
    assert "At most 0.0%" in told
    assert (desk.out / ".pack").is_dir(), "what an interrupted pack leaves was looked at as well"
    shards, out, repair = "shards", desk.out, ("--root", desk.root, "--name", desk.facts, "--id-key", desk.key)
    told = desk.run(
        desk.pack("--max-reject", 1, "--json"),
        ("-v", *desk.pack("--max-reject", 1)),
        *((shards, command, out, *how) for command in ("info", "verify") for how in ((), ("--json",))),
        codes=[0] * 6,
    )
    assert "packed already" in told and "is whole" in told
    packed = json.loads(told.splitlines()[0])
    assert packed["rows"] == sum(packed["splits"].values()) + sum(packed["rejects"].values())
    reasons = "unreadable unsupported missing_file no_label_row burned_in_text excluded_by_source projection_filtered"
    assert set(reasons.split()) <= set(packed["rejects"])
    assert sum(packed["splits"].values()) >= 10
    shard = next(out.glob("*.tar"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:2000] + b"\0" * 700 + whole[2700:])
    (out / "Doe, Jane").mkdir()
    told = desk.run((shards, "verify", out), (shards, "repair", out, *repair), codes=[1, 0])
    assert "1 files or folders do not belong" in told and "Jane" not in told
    (out / "Doe, Jane").rmdir()
    assert shard.read_bytes() == whole
    shard.unlink()
    for source in desk.root.rglob("*text.png"):
        source.write_bytes(source.read_bytes()[:-9])
    desk.run((shards, "repair", out, *repair), (shards, "verify", out), (shards, "info", out), codes=[1, 1, 0])
    assert sorted(path.name for path in desk.key.parent.iterdir()) == sorted(PRIVATE[:2])
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in desk.key.parent.iterdir())
    mapped = pd.read_parquet(desk.key.parent / PRIVATE[1])
    assert len(mapped) >= packed["rows"] and desk.words.found_in(mapped.to_csv().encode()), "the owner's map has all"


def test_no_name_comes_out_of_a_refusal(desk):
    """Each of these goes wrong in another way; the sentences say what is wrong and nothing of the data."""
    exams = (desk.root / "exams.csv").read_text()
    word, column = desk.words("label word"), desk.words("column name")
    half = len(exams) // 2
    broken = {
        "unknown label": exams.replace("Effusion", f"Seen by {word}|Effusion {word}"),
        "another header": exams.replace("file,", f"{column},", 1),
        "open quote": exams[:half] + '"' + exams[half:].replace("\n", "\r\0"),
        "utf-16": exams.encode("utf-16"),
        "empty": "",
        "damaged": b"\x1f\x8b\x08\0\0\0\0\0\0\0" + exams.encode(),
        "no json": '{"accession": "zq',
        "patients in two splits": exams.replace("tuning", "training"),
    }
    commands = []
    for name, data in broken.items():
        root = desk.folder / desk.words("name of another root")
        shutil.copytree(desk.root, root, symlinks=True)
        (root / "exams.csv").unlink()
        table = {"damaged": "exams.csv.gz", "no json": f"reports{column}.json"}.get(name, "exams.csv")
        (root / table).write_bytes(data.encode() if isinstance(data, str) else data)
        commands.append(desk.pack("--max-reject", 0, root=root, to=name))
    auto = ("pack", "auto", "--root", root, "--out", desk.out / "auto")
    place = ("--root", desk.root, "--out", desk.out / "other", "--id-key")
    told = desk.run(
        *commands,
        auto,
        ("pack", "nih14", *place, desk.key),
        desk.pack("--id-map", desk.root / "exams.csv", "--max-reject", 1, to="a table for a map"),
        desk.pack("--id-map", desk.out / "map.parquet"),
        desk.pack("--burned-in-text", desk.words("option")),
        desk.pack(root=desk.root / "exams.csv"),
        ("pack", desk.facts, *place, desk.root / "exams.csv"),
        ("pack", desk.facts, "--root", desk.root, "--out", desk.root, "--id-key", desk.key),
        ("shards", "info", desk.root),
        codes=[1] * len(broken) + [1, 1, 1, 2, 2, 2, 1, 1, 1],
    )
    assert "unknown" in told and "must have a table" in told
    private = desk.key.parent / PRIVATE[2]
    assert desk.words.found_in(private.read_bytes()) == {"label word"}
    assert private.stat().st_mode & 0o777 == 0o600


def test_no_name_comes_out_of_a_pack_that_is_killed_and_goes_on(desk):
    typed = ["pack", desk.facts, "--root", desk.root, "--out", desk.out, "--id-key", desk.key, "--max-reject", 1]
    typed = [str(part) for part in [*typed, "--size", 32]]
    typed += ["--workers", "2"]
    for wanted, signum in (("recipe.json", signal.SIGKILL), ("*.tar", signal.SIGTERM)):
        with subprocess.Popen(
            [sys.executable, "-m", "cxrdist", *typed], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        ) as process:
            until = time.monotonic() + 60
            while not list(desk.out.glob(f".pack/{wanted}")) and process.poll() is None and time.monotonic() < until:
                time.sleep(0.005)
            process.send_signal(signum)
            told = b"\n".join(process.communicate(timeout=60))
        assert process.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM, 0)
        # A reading process that had just been started says that its parent is gone, in Python's own words.
        desk.check(told, typed, orderly=signum != signal.SIGKILL)
    desk.run(desk.pack("--max-reject", 1), ("shards", "verify", desk.out), codes=[0, 0])


def test_no_name_comes_to_a_terminal(desk):
    ours, theirs = pty.openpty()
    typed = [
        "-v",
        "pack",
        desk.facts,
        "--root",
        desk.root,
        "--out",
        desk.out,
        "--id-key",
        desk.key,
        "--max-reject",
        "1",
    ]
    typed = [str(part) for part in typed]
    with subprocess.Popen(
        [sys.executable, "-m", "cxrdist", *typed], stdout=theirs, stderr=theirs, env=environment() | {"COLUMNS": "400"}
    ) as process:
        os.close(theirs)
        told = b""
        while True:
            try:
                part = os.read(ours, 2**16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            told += part
    os.close(ours)
    assert process.returncode == 0 and b"\x1b[2K" in told, "a line that is written over again and again"
    desk.check(told, typed)
