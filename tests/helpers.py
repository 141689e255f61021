"""Makers that several test files need.  Never a real patient's image."""

from pathlib import Path
from typing import Any

import cv2
import gdcm
import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from cxrdist.config import override
from cxrdist.datasets.records import Import, Row
from cxrdist.pack import PackOptions, pack_rows
from cxrdist.pack.plan import DatasetName

GDCM_ENCODES = (  # pydicom has no encoder for these
    *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless),
)
FINDINGS = ("cardiomegaly", "effusion")


def make_shards(
    folder: Path, *, patients: int = 60, size: int = 32, seed: int = 0, name: str = "toy", **pack: Any
) -> Path:
    """Pack a toy dataset whose two findings are a bright disc and a bright lower edge; return the shard folder.

    A third of the patients have two images; 60 % of the patients train, 20 % validate, 20 % test; some labels are
    uncertain or not mentioned.  `pack` changes the `PackOptions`.
    """
    rng = np.random.default_rng(seed)
    sources = folder / "source"
    sources.mkdir(parents=True)
    rows = []
    for patient in range(patients):
        split = "train" if patient < 0.6 * patients else "val" if patient < 0.8 * patients else "test"
        for number in range(1 + (patient % 3 == 0)):
            big, wet = rng.random(2) < 0.4
            image = 60 + 20 * rng.standard_normal((size, size + 4))
            if big:
                cv2.circle(image, (size // 2, size // 2), size // 4, 140.0, -1)
            if wet:
                image[-size // 5 :] += 90
            path = sources / f"p{patient}_{number}.png"
            cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8))
            labels: dict[str, int | None] = {"cardiomegaly": int(big), "effusion": int(wet)}
            if split == "train" and rng.random() < 0.1:
                labels["effusion"] = None if rng.random() < 0.5 else -1
            rows.append(
                Row(
                    source=path.name,
                    path=path,
                    patient=str(patient),
                    study=f"{patient}-{number}",
                    split=split,
                    findings=labels,
                    projection="PA" if patient % 2 else "AP",
                    sex="F" if patient % 2 else "M",
                    age=20 + patient % 60,
                )
            )
    shards = folder / "shards" / name
    # The order of the samples is that of their pseudonyms: a key of its own would be an order of its own in every run.
    id_key = folder / "id.key"
    id_key.write_text("0123456789abcdef" * 4)
    id_key.chmod(0o600)
    options = PackOptions(**{"size": size, "format": "png", "id_key": id_key, "samples_per_shard": 20, **pack})
    pack_rows(DatasetName(name, name.title(), name, "0" * 64), Import(rows, []), shards, options, shown=False)
    return shards


def make_import(folder: Path, *, images: int = 24, side: int = 40, seed: int = 0) -> Import:
    """Write noise as PNG files; return rows over all splits with every value of a finding, sexes and ages."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(images):
        path = folder / f"source{number}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (side, side + number % 5), np.uint8))
        rows.append(
            Row(
                source=path.name,
                path=path,
                patient=f"patient{number // 2}",
                study=f"study{number // 2}",
                split=("train", "train", "val", "test")[number // 2 % 4],
                findings={"cardiomegaly": (1, 0, -1, None)[number % 4], "effusion": number % 2},
                projection="PA" if number % 3 else "unknown",
                sex=("F", "M", "unknown")[number % 3],
                age=number if number % 4 else None,
            )
        )
    return Import(rows, [])


def tiny_vit(**args: Any) -> dict[str, Any]:
    """Return the `model` section of a run with a vision transformer that trains in seconds on a CPU."""
    return {
        "backbone": "vit_tiny_patch16_224",
        "args": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, **args},
    }


def finetune_tree(shards: Path, **train: Any) -> dict[str, Any]:
    """Return the configuration of a fine-tuning of seconds."""
    return {
        "shards": str(shards),
        "input": {"image_size": 32, "workers": 0},
        "model": tiny_vit(),
        "optim": {"lr": 1e-3},
        "train": {
            "steps": 8,
            "global_batch_size": 8,
            "evaluate_every": 4,
            "checkpoint_every": 2,
            "log_every": 1,
            **train,
        },
    }


def make_dicom(path: Path, stored: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Path:
    """Write (H, W) or (H, W, 3) `stored` values as a DICOM file; `tags` set or, with None, remove header tags.

    The header holds a patient's name, ids and dates as a real one does; the values are made up.
    """
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.PatientName, ds.PatientID, ds.StudyDate, ds.AccessionNumber = "DOE^JANE", "SECRET77", "20010203", "ACC99"
    ds.Modality = "DX"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    ds.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * stored.dtype.itemsize
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    high_bit = tags.get("HighBit", "derived")
    ds.PixelData = stored.tobytes()
    for name, value in tags.items():
        if value is None:
            ds.pop(name, None)
        else:
            setattr(ds, name, value)
    if high_bit == "derived":
        ds.HighBit = ds.BitsStored - 1
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    by_gdcm = syntax in GDCM_ENCODES
    if UID(syntax).is_encapsulated and not by_gdcm:
        ds.compress(syntax, generate_instance_uid=False)
    if not by_gdcm:
        ds.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian and ds.BitsAllocated == 16:
        ds.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
    dcmwrite(path, ds, enforce_file_format=True)
    if by_gdcm:
        _transcode(path, syntax)
    return path


def _transcode(path: Path, syntax: str) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def study_tree(shards: dict[str, Path], **changes: Any) -> dict[str, Any]:
    """Return a study of seconds over `shards` by name: `random` and a masked autoencoder `ssl`, one seed.

    `changes` replace or, with dots as double underscores, set its parts.
    """
    recipe = {name: value for name, value in finetune_tree(Path()).items() if name != "shards"}
    recipe["train"] |= {"steps": 4, "evaluate_every": 2}
    decoder = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
    tree = {
        "title": "Tiny",
        "datasets": {name: {"shards": str(folder)} for name, folder in shards.items()},
        "stages": {
            "ssl": {
                "datasets": list(shards),
                "pretrain": {"method": decoder, "train": {"steps": 2, "global_batch_size": 8}},
            }
        },
        "strategies": {"random": {}, "ssl": {"stage": "ssl"}},
        "recipe": {"findings": list(FINDINGS), **recipe},
        "statistics": {"reference": "random", "n_resamples": 20},
    }
    return override(tree, {name.replace("__", "."): value for name, value in changes.items()})
