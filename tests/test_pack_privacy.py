"""Nothing of a source's names leaves it: not in a shard folder, not in a log line, not in an error."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from cxrdist.datasets.records import Import, Reject, Row
from cxrdist.datasets.shard_format import read_manifest
from cxrdist.errors import UserError
from cxrdist.pack import PackOptions, pack_rows
from cxrdist.pack.info import shard_info
from cxrdist.pack.plan import DatasetName
from cxrdist.pack.verify import verify_shards

MARKERS = ("DOEFILE", "DOEPATIENT", "DOESTUDY", "DOETEXT", "DOEEXIF", "DOEHEADER", "DOEFOLDER")


def write_dicom(path: Path, pixels: np.ndarray, *, photometric: str = "MONOCHROME2") -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.PatientName = dataset.PatientID = dataset.StudyID = dataset.AccessionNumber = "DOEHEADER"
    dataset.StudyInstanceUID = dataset.SOPInstanceUID = "1.2.3.4.5"
    dataset.PatientAge, dataset.PatientSex, dataset.ViewPosition = "097Y", "F", "PA"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.VOILUTFunction = "DOEHEADER"
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def make_marked(folder: Path) -> Import:
    """Write images of every kind, good and bad, with a marker wherever a name can stand."""
    rng = np.random.default_rng(0)
    root = folder / "DOEFOLDER"
    root.mkdir(parents=True)
    text, exif = PngInfo(), Image.Exif()
    text.add_text("Patient", "DOETEXT")
    text.add_text("Comment", "DOETEXT " * 50, zip=True)
    exif[0x013B] = "DOEEXIF"
    for number in range(4):
        grey = Image.fromarray(rng.integers(0, 256, (40, 44), np.uint8))
        grey.save(root / f"DOEFILE_png{number}.png", pnginfo=text)
        grey.rotate(90).save(root / f"DOEFILE_jpeg{number}.jpg", exif=exif, comment=b"DOETEXT")
        deep = rng.integers(0, 2**16, (40, 44), np.uint16)
        write_dicom(root / f"DOEFILE_dicom{number}.dcm", deep)
    write_dicom(root / "DOEFILE_photometric.dcm", deep[::-1].copy(), photometric="DOEHEADER")
    for path in list(root.iterdir()):
        data = path.read_bytes()
        (root / f"{path.stem}_half{path.suffix}").write_bytes(data[: len(data) // 2])
        (root / f"{path.stem}_head{path.suffix}").write_bytes(data[:140])
        flipped = bytearray(data)
        flipped[len(data) // 3 :: 97] = bytes(len(flipped[len(data) // 3 :: 97]))
        (root / f"{path.stem}_dirty{path.suffix}").write_bytes(flipped)
    (root / "DOEFILE_folder.png").mkdir()
    paths = [*sorted(root.iterdir()), root / "DOEFILE_missing.png"]
    rows = [
        Row(
            source=f"DOEFOLDER/{path.name}",
            path=path,
            patient=f"DOEPATIENT{number}",
            study=f"DOESTUDY{number}",
            split=("train", "val", "test")[number % 3],
            findings={"effusion": number % 2},
            notes={"comment": "DOETEXT", "voi": "DOETEXT"},
        )
        for number, path in enumerate(paths)
    ]
    return Import(rows, [Reject("DOEFOLDER/DOEFILE_extra.png", "no_label_row")])


def everything_told(shards: Path) -> str:
    """Return all text a reader can get out of a shard folder, compressed tables included."""
    parts = [path.name + path.read_bytes().decode("latin-1") for path in sorted(shards.rglob("*")) if path.is_file()]
    parts.append(pq.read_table(shards / "index.parquet").to_pandas().to_csv())
    return "\n".join(parts)


@pytest.mark.parametrize(("form", "workers"), [("jpeg", 1), ("png", 2)])
def test_no_name_of_the_source_is_in_any_output_log_or_error(tmp_path, capfd, caplog, recwarn, form, workers):
    found = make_marked(tmp_path / "raw")
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    out, key = tmp_path / "shards", tmp_path / "id.key"
    dataset = DatasetName("toy", "Toy", "toy", "0" * 64)
    options = PackOptions(size=32, format=form, workers=workers, id_key=key, max_reject=0.2, samples_per_shard=4)
    with pytest.raises(UserError, match=r"At most 20\.0%") as error:
        pack_rows(dataset, found, out, options)
    unfinished = "".join(path.read_bytes().decode("latin-1") for path in (out / ".pack").iterdir())
    pack_rows(dataset, found, out, options.model_copy(update={"max_reject": 1.0}))
    problems = verify_shards(out)
    assert not problems
    manifest = read_manifest(out)
    assert manifest.samples >= 13, manifest.rejects
    assert {"unreadable", "missing_file", "no_label_row"} <= set(manifest.rejects)
    captured = capfd.readouterr()
    warnings = [str(warning.message) for warning in recwarn]
    told = [everything_told(out), unfinished, str(error.value), captured.out, captured.err, caplog.text, *warnings]
    told.append(repr(shard_info(out)))
    for marker in MARKERS:
        assert not any(marker in text for text in told), marker
    assert "1.2.3.4.5" not in told[0]
    mapped = pq.read_table(tmp_path / "toy.idmap.parquet")["source"].to_pylist()
    assert sorted(mapped) == sorted(item.source for item in [*found.rows, *found.rejects]), "the owner's map has all"


@pytest.mark.parametrize(("form", "extension"), [("jpeg", "jpg"), ("png", "png")])
def test_images_hold_pixels_and_no_metadata(tmp_path, form, extension):
    found = make_marked(tmp_path / "raw")
    options = PackOptions(size=512, format=form, id_key=tmp_path / "id.key", max_reject=1.0)
    pack_rows(DatasetName("toy", "Toy", "toy", "0" * 64), found, tmp_path / "shards", options, shown=False)
    seen = 0
    for path in (tmp_path / "shards").glob("*.tar"):
        for sample in wds.WebDataset(str(path), shardshuffle=False):
            data, seen = sample[extension], seen + 1
            if form == "png":
                assert set(png_chunks(data)) <= {b"IHDR", b"IDAT", b"IEND"}
            else:
                assert set(jpeg_segments(data)) <= {0xE0, 0xDB, 0xC0, 0xC4, 0xDA}, "JFIF, tables, frame, scan"
            assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).ndim == 2
    assert seen >= 13


def test_an_age_above_ninety_in_a_header_is_told_as_ninety(tmp_path):
    write_dicom(tmp_path / "a.dcm", np.arange(1600, dtype=np.uint16).reshape(40, 40))
    row = Row("a.dcm", tmp_path / "a.dcm", "a", "a", "train", {"effusion": 1})
    options = PackOptions(size=32, id_key=tmp_path / "id.key")
    pack_rows(DatasetName("toy", "Toy", "toy", "0" * 64), Import([row], []), tmp_path / "shards", options, shown=False)
    part = shard_info(tmp_path / "shards").splits["train"]
    assert part.age.oldest == 90
    assert (part.sex, part.projection) == ({"F": 1}, {"PA": 1}), "the header fills what the dataset leaves open"


def png_chunks(data: bytes) -> list[bytes]:
    chunks, place = [], 8
    while place < len(data):
        chunks.append(data[place + 4 : place + 8])
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return chunks


def jpeg_segments(data: bytes) -> list[int]:
    """Return the markers from the first segment to the start of the scan."""
    segments, place = [], 2
    while not segments or segments[-1] != 0xDA:
        assert data[place] == 0xFF
        segments.append(data[place + 1])
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return segments
