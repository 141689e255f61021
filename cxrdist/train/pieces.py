"""What a checkpoint holds: pieces of flattened tensors, written by any number of ranks and read by any other.

A checkpoint is a folder of `checkpoint.json` and one safetensors file per rank.  A file's tensors are one-dimensional
pieces called ``kind/name@start``: of the flattened tensor `name`, the values from `start` on.  So nothing in a
checkpoint depends on how the ranks divided the work, and a reader asks for the ranges that it needs itself.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from cxrdist.errors import UserError, nearest

RECORD = "checkpoint.json"
"""Written when all ranks' files are there: sizes, hashes, facts, and a hash of its own text."""

FORMAT = 1
"""Of a checkpoint as a whole, in its record."""

ASIDE = ".replaced-"
"""Before the name of a checkpoint whose place another one of the same step is taking."""

EARLIER = "mp_rank_00_model_states.pt"
"""What an earlier version wrote, through DeepSpeed."""

CHUNK = 1 << 23
"""Bytes that are hashed and written at a time."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in a safetensors header."""


@dataclass(frozen=True)
class Piece:
    """Part of one flattened tensor."""

    name: str
    """Of the parameter or buffer; may hold dots."""
    kind: str
    """What it is of that parameter: weight, ema, buffer, exp_avg ...; no slash."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int
    """Where the piece begins in the flattened tensor."""
    tensor: torch.Tensor
    """Its values, one-dimensional, on any device; may be empty."""

    def __post_init__(self) -> None:
        stop = self.start + self.tensor.numel()
        if self.tensor.ndim != 1 or "/" in self.kind or not 0 <= self.start <= stop <= math.prod(self.shape):
            raise ValueError(
                f"A piece must be a range of its flattened tensor, got {self.start} to {stop} with "
                f"{self.tensor.ndim} dimensions [in {self.kind} of {self.name!r}, {list(self.shape)}]."
            )


def place_of(checkpoint: Path) -> Path:
    """Return where a checkpoint lies: aside, if a kill came while another one of its step was taking its place."""
    aside = checkpoint.with_name(f"{ASIDE}{checkpoint.name}")
    return aside if aside.is_dir() and not checkpoint.is_dir() else checkpoint


class DamagedError(Exception):
    """A checkpoint is not what was written; the text says what is wrong with it."""


def rank_file(rank: int) -> str:
    """Return the name of the file that holds the pieces of `rank`."""
    return f"rank-{rank:05d}.safetensors"


def write_pieces(path: Path, pieces: Sequence[Piece], facts: str) -> tuple[int, str]:
    """Write `pieces` and `facts` (JSON) into a new safetensors file; return its size in bytes and its sha256.

    The file is on the disk when this returns.  safetensors' own writer tells no hash and would have the file read
    again for it; this one needs no memory beside the pieces, and of those on a device one at a time.
    The format: https://github.com/huggingface/safetensors#format

    Raises:
        OSError: If the disk does not take it.
    """
    shapes = {f"{piece.kind}/{piece.name}": piece.shape for piece in pieces}
    # Widest items first: then each tensor begins at a multiple of its item's size, as memory-mapped reading needs.
    filled = sorted((piece for piece in pieces if piece.tensor.numel()), key=lambda piece: -piece.tensor.element_size())
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "facts": facts, "shapes": json.dumps(shapes)}}
    end = 0
    for piece in filled:
        key = f"{piece.kind}/{piece.name}@{piece.start}"
        assert key not in header, f"{key} is there twice"
        begin, end = end, end + piece.tensor.nbytes
        header[key] = {
            "dtype": DTYPES[piece.tensor.dtype],
            "shape": [piece.tensor.numel()],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for piece in filled:
            data = piece.tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
            for begin in range(0, len(data), CHUNK):
                digest.update(data[begin : begin + CHUNK])
                file.write(data[begin : begin + CHUNK])
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    return size, digest.hexdigest()


def record_text(record: Mapping[str, Any]) -> str:
    """Return the text of a `checkpoint.json`: `record` and its own sha256, so that a changed digit is told as well."""
    own = {"sha256": _own_sha256(record)}
    return json.dumps({**record, **own}, indent=1) + "\n"


def read_record(checkpoint: Path) -> dict[str, Any]:
    """Return the `checkpoint.json` of a checkpoint's folder.

    Raises:
        DamagedError: If it is not there, or not what was written.
    """
    try:
        record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
        if record.pop("sha256") != _own_sha256(record):
            raise ValueError
    except OSError:
        raise DamagedError(f"{RECORD} is not there") from None
    except (ValueError, KeyError, TypeError, AttributeError):  # also what is no text, no JSON, no dict
        raise DamagedError(f"{RECORD} is not what was written") from None
    return record


def refuse_other_versions(checkpoint: Path) -> None:
    """Refuse a checkpoint that another version wrote in another format; a damaged one passes.

    Raises:
        UserError: If it is one.
    """
    found = f"an earlier version's ({EARLIER})" if (checkpoint / EARLIER).exists() else None
    with suppress(DamagedError):
        record = read_record(checkpoint)
        if record.get("format") != FORMAT:
            found = f"another version's, {record.get('format')!r} and not {FORMAT}"
    if found:
        raise UserError(
            f"A checkpoint must be of this version's format, got {found} [in {checkpoint.name}]. "
            "Finish that run with the version that began it, or start anew in another --out."
        )


class Reader:
    """Reads one committed checkpoint, whatever number of ranks wrote it; maps its files and reads what is asked for."""

    def __init__(self, folder: Path) -> None:
        """Open the checkpoint in `folder`.

        Raises:
            UserError: If it is not there or damaged, as far as sizes and headers tell, or another version's.
        """
        folder = place_of(folder)
        refuse_other_versions(folder)
        self.folder = folder
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Any]]] = {}
        """For a kind and a name: start, stop and the mapped piece, in the order of the starts."""
        try:
            record = read_record(folder)
            for rank in range(record["world_size"]):
                self._open(rank_file(rank))
        except DamagedError as error:
            raise UserError(
                f"A checkpoint must be as it was written, got {str(error)!r} [in {folder.name}]. Choose another one."
            ) from None
        self.facts: dict[str, Any] = record["facts"]
        """What the run remembered beside the tensors."""
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece[:2])

    def names(self, kind: str) -> list[str]:
        """Return the names that have tensors of `kind`; none if it holds no such kind."""
        return list(self._shapes.get(kind, {}))

    def full(self, name: str, kind: str) -> torch.Tensor:
        """Return a whole tensor in its shape.

        Raises:
            UserError: If the checkpoint does not hold all of it.
        """
        shape = self._shape(name, kind)
        return self.read(name, kind, 0, math.prod(shape)).reshape(shape)

    def read(self, name: str, kind: str, start: int, stop: int) -> torch.Tensor:
        """Return the values `start` to `stop` of a flattened tensor, one-dimensional, on the CPU.

        They may be the mapped file itself: copy them before you write to them.

        Raises:
            UserError: If the checkpoint does not hold all of them.
        """
        self._shape(name, kind)
        parts = []
        position = start
        pieces = self._pieces.get((kind, name), [])
        for begin, end, piece in pieces:
            if begin <= position < min(end, stop):
                parts.append(piece[position - begin : min(end, stop) - begin])
                position = min(end, stop)
        if position < stop:
            raise UserError(
                f"A checkpoint must hold every value of a parameter, got no {kind} of {name!r} from {position} on, "
                f"of {start} to {stop} [in {self.folder.name}]. Is it a checkpoint of another model?"
            )
        if not parts:
            return pieces[0][2][:0] if pieces else torch.empty(0)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _shape(self, name: str, kind: str) -> tuple[int, ...]:
        names = self._shapes.get(kind, {})
        if name not in names:
            raise UserError(
                f"A checkpoint must hold every parameter of the model, got no {kind} of {name!r} "
                f"[in {self.folder.name}].{nearest(name, names)} Is it a checkpoint of another model?"
            )
        return names[name]

    def _open(self, file: str) -> None:
        path = self.folder / file
        if not path.is_file():
            raise DamagedError(f"{file} is not there")
        try:
            opened = safe_open(path, framework="pt")
        except (SafetensorError, OSError):
            raise DamagedError(f"{file} is not what was written") from None
        for label, shape in json.loads(opened.metadata()["shapes"]).items():
            kind, name = label.split("/", 1)
            self._shapes.setdefault(kind, {})[name] = tuple(shape)
        for key in opened.keys():  # noqa: SIM118 (not a dict)
            label, start = key.rsplit("@", 1)
            kind, name = label.split("/", 1)
            mapped = opened.get_slice(key)
            stop = int(start) + mapped.get_shape()[0]
            self._pieces.setdefault((kind, name), []).append((int(start), stop, mapped))


def _own_sha256(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
