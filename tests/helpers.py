"""Makers that several test files need.  Never a real patient's image."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxrdist.datasets.records import Import, Row
from cxrdist.pack import PackOptions, pack_rows
from cxrdist.pack.plan import DatasetName

FINDINGS = ("cardiomegaly", "effusion")


def make_shards(folder: Path, *, patients: int = 60, size: int = 32, seed: int = 0, name: str = "toy") -> Path:
    """Pack a toy dataset whose two findings are a bright disc and a bright lower edge; return the shard folder.

    A third of the patients have two images; 60 % of the patients train, 20 % validate, 20 % test; some labels are
    uncertain or not mentioned.
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
    options = PackOptions(size=size, format="png", id_key=folder / "id.key", samples_per_shard=20)
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
