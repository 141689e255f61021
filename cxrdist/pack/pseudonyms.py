"""Pseudonyms under the user's key, and the private map that leads back from them.

A plain hash of an id is no pseudonym: ids are short and known, so anybody can hash them all and compare (DICOM PS3.15
E.3.9 names this attack).  HMAC-SHA256 under a random key that never leaves its owner has no such list.
The same key gives the same pseudonyms, so patients stay together over datasets of one namespace.
"""

import hmac
import io
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cxrdist.errors import UsageError, UserError
from cxrdist.log import get_logger
from cxrdist.pack.private import create_private, sync, write_private

ID_KEY_CHARACTERS = 64
FEWEST_ID_KEY_CHARACTERS = 32
ID_HEX_DIGITS = 32
"""128 bits: among 10**9 images two share a pseudonym with probability 1.5e-21."""

log = get_logger(__name__)


@dataclass(frozen=True)
class Pseudonyms:
    """Pseudonyms of one namespace under one key.  A letter leads, so that no table program reads one as a number."""

    key: bytes
    namespace: str

    def image(self, source: str) -> str:
        """Return the image id, which is also the sample's key."""
        return "i" + self._digest("image", source)

    def patient(self, patient: str) -> str:
        """Return the patient id."""
        return "p" + self._digest("patient", patient)

    def study(self, patient: str, study: str) -> str:
        """Return the study id; study numbers may repeat between patients, so the patient takes part."""
        return "s" + self._digest("study", patient, study)

    @property
    def fingerprint(self) -> str:
        """A public name of the key: it tells two keys apart and gives nothing away of either."""
        return hmac.new(self.key, b"fingerprint", "sha256").hexdigest()[:16]

    def keyed_hash(self, data: bytes) -> str:
        """Return a hash of source data that nobody without the key can test guesses against."""
        return hmac.new(self.key, b"inputs\0" + data, "sha256").hexdigest()

    def _digest(self, kind: str, *source_ids: str) -> str:
        message = "\0".join((kind, self.namespace, *source_ids)).encode("utf-8", "surrogateescape")
        return hmac.new(self.key, message, "sha256").hexdigest()[:ID_HEX_DIGITS]


def data_folder() -> Path:
    """Return the user's data folder of the tool: ``$XDG_DATA_HOME/cxrdist``, or below ``~/.local/share``."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "cxrdist"


def default_id_key() -> Path:
    """Return where the id key is when the user names no place."""
    return data_folder() / "id.key"


def check_id_key(path: Path, fingerprint: str, shards: Path) -> None:
    """Raise `UserError` unless the file `path` holds the id key that the finished folder `shards` was packed with."""
    way_out = "Name the file with `--id-key`."
    rule = "The id key must be the one that the folder was packed with"
    if not path.exists():
        raise UserError(f"{rule}, got none at {str(path)!r} [for {str(shards)!r}]. {way_out}")
    if Pseudonyms(open_id_key(path), "").fingerprint != fingerprint:
        raise UserError(f"{rule}, got another at {str(path)!r} [for {str(shards)!r}]. {way_out}")


def id_map_path(dataset: str, id_key: Path, id_map: Path | None) -> Path:
    """Return where the private map of `dataset` goes: where the user says (file or folder), or beside the id key."""
    name = f"{dataset}.idmap.parquet"
    if id_map is None:
        return id_key.parent / name
    return id_map / name if id_map.is_dir() else id_map


def refuse_inside(path: Path, shards: Path, what: str) -> None:
    """Raise `UsageError` if the private file `path` would lie in the shard folder, which is made to be passed on."""
    if path.resolve().is_relative_to(shards.resolve()):
        raise UsageError(f"{what} must lie outside the shard folder, got {str(path)!r}. It must never be passed on.")


def open_id_key(path: Path) -> bytes:
    """Return the key in the file `path`; a new random one, mode 0600, if there is no such file.

    Raises:
        UserError: If the file is too short to be a key, or cannot be read or made.
    """
    try:
        try:
            file = create_private(path)
        except FileExistsError:
            return _read_id_key(path)
        with file:
            key = secrets.token_hex(ID_KEY_CHARACTERS // 2).encode()
            file.write(key + b"\n")
            sync(file)
    except OSError as error:
        raise UserError(f"The id key must be readable, got {error.strerror!r} [in {str(path)!r}].") from None
    log.info("Made a new id key: %s. Keep it, and keep it private: it alone leads to the same pseudonyms.", path)
    return key


def _read_id_key(path: Path) -> bytes:
    key = path.read_bytes().strip()
    if len(key) < FEWEST_ID_KEY_CHARACTERS:
        raise UserError(
            f"An id key must have at least {FEWEST_ID_KEY_CHARACTERS} characters, got {len(key)} [in {str(path)!r}]. "
            f"Name another file, and a key is made."
        )
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        log.warning("The id key %s can be read by other users of this machine: run `chmod 600` on it.", path)
    return key


@dataclass(frozen=True)
class MapLine:
    """One line of the private map."""

    source: str
    image_id: str
    patient_id: str | None
    study_id: str | None
    split: str | None
    reject: str | None


def write_id_map(path: Path, new: Iterable[MapLine]) -> None:
    """Write the private map, mode 0600, keeping lines of earlier packs (other keys, other versions of the data).

    Raises:
        UserError: If there is a file that is no id map, or the place cannot be written.
    """
    lines = {(line.source, line.image_id): line for line in _read_id_map(path)}
    for line in new:
        # File names need not be text; what is none shows as \\xNN.
        source = line.source.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        lines[source, line.image_id] = replace(line, source=source)
    names = [field.name for field in fields(MapLine)]
    columns = zip(*(astuple(lines[place]) for place in sorted(lines)), strict=True)
    table = pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})
    file = io.BytesIO()
    pq.write_table(table, file)
    write_private(path, file.getvalue(), "The id map")


def _read_id_map(path: Path) -> list[MapLine]:
    if not path.exists():
        return []
    try:
        return [MapLine(**line) for line in pq.read_table(path).to_pylist()]
    except (OSError, pa.ArrowException, TypeError):
        raise UserError(
            f"The id map must be one that `cxrdist pack` wrote, got another file [{str(path)!r}]."
        ) from None
