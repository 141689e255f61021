"""Facts changed by hand can name a patient: they are known to their owner, and to nobody who gets the shards."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from cxrdist.cli.main import app
from cxrdist.config import write_yaml
from cxrdist.datasets import fact_hash, read_facts
from cxrdist.errors import UsageError, UserError
from cxrdist.pack import pack_dataset
from cxrdist.pack.dataset import packed_facts, repair_dataset
from cxrdist.pack.options import PackOptions
from cxrdist.phantom import write_phantoms

OBJECTS = "00000003"
"""The patient who objects."""


def cli(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("raw") / "nih"
    write_phantoms("nih14", root, patients=8, seed=1, difficulty=0.0, size=48, workers=1, traps=False)
    return root


@pytest.fixture
def packed(raw, tmp_path) -> tuple[Path, Path, dict]:
    """Return a folder from which one patient was dropped, its id key, and what was changed."""
    table = pd.read_csv(raw / "Data_Entry_2017_v2020.csv", dtype=str)
    assert (table["Patient ID"].str.zfill(8) == OBJECTS).any()
    changes = {"drop.Patient ID": [table.loc[table["Patient ID"].str.zfill(8) == OBJECTS, "Patient ID"].iloc[0]]}
    key, out = tmp_path / "private" / "id.key", tmp_path / "shards"
    facts = read_facts("nih14", changes=changes)
    manifest = pack_dataset(facts, raw, out, PackOptions(size=32, id_key=key, max_reject=1), shown=False)
    assert manifest.rejects["excluded_by_source"] >= 1
    return out, key, changes


def test_no_value_changed_by_hand_can_be_read_or_guessed_from_a_manifest(packed, raw):
    out, key, changes = packed
    text = (out / "manifest.json").read_text()
    assert "Patient ID" not in text and "drop" not in text
    facts = read_facts("nih14", changes=changes)
    guess = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()
    assert fact_hash(facts) not in text and guess not in text
    private = key.parent / "nih14.changes.json"
    assert private.stat().st_mode & 0o777 == 0o600
    assert list(json.loads(private.read_text()).values()) == [changes]
    assert list(json.loads(private.read_text())) == [json.loads(text)["changes"]]


def test_a_folder_packed_with_changes_is_repaired_from_the_private_file_or_the_same_set(packed, raw):
    out, key, changes = packed
    shard = next(out.glob("*.tar"))
    whole = shard.read_bytes()
    repair = ("shards", "repair", out, "--root", raw, "--id-key", key)
    shard.unlink()
    assert cli(*repair)[0] == 0
    assert shard.read_bytes() == whole
    (key.parent / "nih14.changes.json").unlink()
    shard.unlink()
    code, told = cli(*repair)
    assert code == 1 and "Give the same `--set`" in told
    (setting,) = (f"{name}={json.dumps(value)}" for name, value in changes.items())
    code, told = cli(*repair, "--set", "drop.Patient ID=['99']")
    assert code == 1 and "fact file" in told and not shard.exists()
    assert cli(*repair, "--set", setting)[0] == 0
    assert shard.read_bytes() == whole


def test_changes_of_other_packs_stay_in_the_private_file(packed, raw, tmp_path):
    _, key, changes = packed
    other = {"splits.seed": 3}
    options = PackOptions(size=32, id_key=key)
    pack_dataset(read_facts("nih14", changes=other), raw, tmp_path / "second", options, shown=False)
    plain = pack_dataset(read_facts("nih14"), raw, tmp_path / "third", options, shown=False)
    assert plain.changes is None
    kept = json.loads((key.parent / "nih14.changes.json").read_text())
    assert sorted(map(str, kept.values())) == sorted(map(str, [changes, other]))


def test_repair_with_another_id_key_asks_for_the_right_one_and_makes_none(packed, raw, tmp_path):
    out, _, _ = packed
    facts = read_facts("nih14")
    with pytest.raises(UserError, match=r"got none at .* Name the file with `--id-key`"):
        repair_dataset(facts, raw, out, id_key=tmp_path / "new.key", shown=False)
    assert not (tmp_path / "new.key").exists()
    (tmp_path / "other.key").write_text("k" * 64)
    with pytest.raises(UserError, match=r"got another at .* Name the file with `--id-key`"):
        packed_facts(out, id_key=tmp_path / "other.key")


def test_repair_of_a_folder_from_an_own_fact_file_asks_for_it(raw, tmp_path):
    tree = read_facts("nih14").tree() | {"name": "my_nih"}
    del tree["variant"], tree["changes"], tree["variants"]
    write_yaml(tree, tmp_path / "mine.yaml")
    out, key = tmp_path / "shards", tmp_path / "id.key"
    pack_dataset(read_facts(str(tmp_path / "mine.yaml")), raw, out, PackOptions(size=32, id_key=key), shown=False)
    with pytest.raises(UsageError, match=r"`--name FACTS\.yaml`"):
        packed_facts(out, id_key=key)
    assert packed_facts(out, name=str(tmp_path / "mine.yaml"), id_key=key).name == "my_nih"
