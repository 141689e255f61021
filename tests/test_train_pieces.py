"""What any number of ranks wrote, any other number reads: bit by bit, and only what it asks for."""

import gc
import hashlib
import math
import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cxrdist.errors import UserError
from cxrdist.train.pieces import DTYPES, EARLIER, FORMAT, RECORD, Piece, Reader, rank_file, record_text, write_pieces

MIB = 2**20


def write_checkpoint(folder: Path, ranks: list[list[Piece]], facts: dict | None = None) -> Path:
    folder.mkdir()
    for rank, pieces in enumerate(ranks):
        write_pieces(folder / rank_file(rank), pieces, "{}")
    (folder / RECORD).write_text(record_text({"format": FORMAT, "world_size": len(ranks), "facts": facts or {}}))
    return folder


def random_tensor(rng: random.Random, dtype: torch.dtype) -> torch.Tensor:
    shape = [rng.choice([0, 1, 2, 3, 7, 19]) for _ in range(rng.randrange(4))]
    bits = torch.randint(0, 256, [math.prod(shape) * dtype.itemsize], dtype=torch.uint8)
    if dtype == torch.bool:
        return bits.reshape(shape) > 127
    return bits.view(dtype).reshape(shape)  # floats that are not numbers are bits like any other


def cuts(rng: random.Random, size: int, parts: int) -> list[tuple[int, int]]:
    """Divide a range into so many parts, some of them empty."""
    inner = sorted(rng.randint(0, size) for _ in range(parts - 1))
    return list(zip([0, *inner], [*inner, size], strict=True))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def peak_growth(work: Callable[[], object]) -> int:
    """Return by how many bytes `work` makes a process grow at its largest."""

    def measured() -> None:
        gc.freeze()
        before = largest()
        work()
        sender.send(largest() - before)

    def largest() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=measured)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return receiver.recv()


def test_what_some_ranks_wrote_others_read_bit_by_bit(tmp_path):
    seed = random.randrange(10**6)
    print(f"drawn with seed {seed}")
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for case in range(40):
        wholes = {
            (rng.choice(["weight", "exp_avg", "buffer"]), f"blocks.{n}.attn/qkv@{n}.weight"): random_tensor(rng, dtype)
            for n in range(rng.randint(1, 12))
            for dtype in [rng.choice(list(DTYPES))]
        }
        ranks: list[list[Piece]] = [[] for _ in range(rng.randint(1, 5))]
        for (kind, name), whole in wholes.items():
            for begin, end in cuts(rng, whole.numel(), rng.randint(1, 6)):
                piece = Piece(name, kind, tuple(whole.shape), begin, whole.flatten()[begin:end])
                rng.choice(ranks).append(piece)
        for pieces in ranks:
            rng.shuffle(pieces)
        reader = Reader(write_checkpoint(tmp_path / str(case), ranks, {"step": case}))
        assert reader.facts == {"step": case}
        for (kind, name), whole in wholes.items():
            parts = [reader.read(name, kind, *cut) for cut in cuts(rng, whole.numel(), rng.randint(1, 6))]
            assert bits(torch.cat(parts)) == bits(whole)
            full = reader.full(name, kind)
            assert (full.shape, full.numel() and full.dtype) == (whole.shape, whole.numel() and whole.dtype)
            assert bits(full) == bits(whole)
        for kind in ("weight", "exp_avg", "buffer", "ema"):
            assert sorted(reader.names(kind)) == sorted(name for other, name in wholes if other == kind)


def test_the_file_is_one_that_safetensors_reads_and_the_hash_is_its(tmp_path):
    tensors = [torch.arange(5, dtype=torch.uint8), torch.arange(3).bfloat16(), torch.arange(4.0), torch.tensor([7])]
    pieces = [Piece(f"p.{n}", "weight", (9,), n, tensor) for n, tensor in enumerate(tensors)]
    path = tmp_path / rank_file(0)
    size, sha256 = write_pieces(path, [*pieces, Piece("none", "weight", (9,), 4, torch.empty(0))], "{}")
    assert (size, sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    read = load_file(path)
    assert read.keys() == {f"weight/p.{n}@{n}" for n in range(4)}
    assert all(torch.equal(read[f"weight/p.{n}@{n}"], tensor) for n, tensor in enumerate(tensors))


def test_a_range_that_nobody_wrote_is_a_sentence_with_the_parameter(tmp_path):
    pieces = [Piece("a.b", "weight", (4, 5), start, torch.ones(5)) for start in (0, 5, 15)]
    reader = Reader(write_checkpoint(tmp_path / "step-00000001", [pieces[:2], pieces[2:]]))
    assert torch.equal(reader.read("a.b", "weight", 2, 9), torch.ones(7))
    with pytest.raises(UserError, match=r"got no weight of 'a\.b' from 10 on, of 8 to 20 \[in step-00000001\]"):
        reader.read("a.b", "weight", 8, 20)
    with pytest.raises(UserError, match=r"got no weight of 'a\.b' from 10 on"):
        reader.full("a.b", "weight")
    with pytest.raises(UserError, match=r"got no weight of 'a\.c' \[in step-00000001\]. Did you mean 'a\.b'\?"):
        reader.full("a.c", "weight")
    with pytest.raises(UserError, match=r"got no ema of 'a\.b'"):
        reader.read("a.b", "ema", 0, 0)


@pytest.mark.parametrize(
    ("kind", "start", "tensor"),
    [
        ("weight", 5, torch.ones(2)),
        ("weight", -1, torch.ones(2)),
        ("a/b", 0, torch.ones(2)),
        ("b", 0, torch.ones(1, 2)),
    ],
)
def test_a_piece_that_is_no_range_of_its_tensor_is_refused(kind, start, tensor):
    with pytest.raises(ValueError, match="A piece must be a range of its flattened tensor"):
        Piece("a", kind, (2, 3), start, tensor)


def test_the_same_piece_twice_on_a_rank_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(AssertionError, match="weight/a@0 is there twice"):
        write_pieces(tmp_path / rank_file(0), [Piece("a", "weight", (2,), 0, torch.ones(2))] * 2, "{}")


def test_reading_a_part_takes_memory_for_the_part_alone(tmp_path):
    whole = torch.ones(64 * MIB // 4)
    folder = write_checkpoint(tmp_path / "step", [[Piece("a", "weight", tuple(whole.shape), 0, whole)]])
    del whole
    assert peak_growth(lambda: Reader(folder).read("a", "weight", MIB, 2 * MIB).sum()) < 16 * MIB
    assert peak_growth(lambda: Reader(folder).full("a", "weight").sum()) > 48 * MIB


def test_writing_takes_no_memory_beside_what_is_written(tmp_path):
    pieces = [Piece(str(n), "weight", (16 * MIB,), 0, torch.ones(16 * MIB)) for n in range(2)]
    assert peak_growth(lambda: write_pieces(tmp_path / rank_file(0), pieces, "{}")) < 16 * MIB


def test_a_checkpoint_of_an_earlier_version_is_a_sentence(tmp_path):
    (tmp_path / EARLIER).touch()
    with pytest.raises(
        UserError, match=r"must be of this version's format, got an earlier version's .* Finish that run"
    ):
        Reader(tmp_path)


@pytest.mark.parametrize("record", [{"format": FORMAT + 1, "ranks": {}}, {"world_size": 1, "facts": {}, "files": {}}])
def test_a_checkpoint_of_another_format_is_a_sentence_and_not_a_damage(tmp_path, record):
    (tmp_path / RECORD).write_text(record_text(record))
    with pytest.raises(UserError, match=rf"another version's, {record.get('format')} and not {FORMAT} .* Finish that"):
        Reader(tmp_path)


@pytest.mark.parametrize("file", [RECORD, rank_file(0), rank_file(1)])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut"])
def test_opening_a_checkpoint_with_a_missing_or_torn_file_is_a_sentence(tmp_path, file, damage):
    pieces = [Piece("a", "weight", (9,), start, torch.ones(3)) for start in (0, 3, 6)]
    folder = write_checkpoint(tmp_path / "step-00000001", [pieces[:1], pieces[1:]])
    path = folder / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -5])
    with pytest.raises(UserError, match=rf"A checkpoint must be as it was written, got '{file} is not .*step-00000001"):
        Reader(folder)
