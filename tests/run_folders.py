"""Makes the run folders that a report is made from, small and right, and spoils them."""

import json

import numpy as np

from cxrdist.config import write_yaml
from cxrdist.report import CellFiles, ReportOptions
from cxrdist.report.analysis import analyse
from cxrdist.report.cells import read_cell
from cxrdist.stats.predictions import Predictions, read_predictions, write_predictions

NASTY = "<b>x</b>&|_$y$\\"
FINDINGS = ("effusion", "edema", "mass")
STRATEGIES = ("random", "ours")
DATASETS = ("nih14", "vindr")
OPTIONS = ReportOptions(reference="random", n_resamples=29, metrics=("auroc", "sensitivity", "brier"))


def make_predictions(prefix, skill, seed, *, n=90):
    """Return predictions of which images and labels depend on `prefix` alone; two images per patient."""
    rng = np.random.default_rng(sum(prefix.encode()))
    targets = (rng.random((n, 3)) < (0.4, 0.3, 0.2)).astype(float)
    scores = 1 / (1 + np.exp(-skill * targets - np.random.default_rng(seed).normal(size=targets.shape)))
    ids = (
        np.array([f"{prefix}{kind}{i // step:03d}" for i in range(n)], dtype=object)
        for kind, step in (("i", 1), ("p", 2))
    )
    sex = np.array(["female", "male"], dtype=object)[np.arange(n) // 2 % 2]
    return Predictions(*ids, FINDINGS, targets, scores, {"sex": sex})


def make_cell(root, strategy, dataset, seed, skill, number):
    """Write one run folder of cell `number` and return its files."""
    folder = root / "cells" / str(number)
    for split in ("val", "test"):
        predictions = make_predictions(f"{dataset}-{split}", skill, 10 * number + (split == "val"))
        write_predictions(folder / f"predictions/{split}.parquet", predictions)
    write_yaml({"steps": 40, "train": {"global_batch_size": 8}, "seed": seed}, folder / "config.yaml")
    environment = {
        "git_revision": "abc123",
        "versions": {"torch": "2.9"},
        "shard_manifests": [{"name": "toy", "sha256": "aa11"}, {"name": "toy", "sha256": "bb22"}],
        "seed": seed,
        "home": "/home/somebody",
        "user": "me",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = [{"step": s, "kind": "train", "time": 0.0, "loss": 1 / s, "lr": 1e-3} for s in range(1, 41)]
    lines += [{"step": s, "kind": "val", "time": 0.0, "loss": 0.5, "auroc_macro": 0.7, "auroc": {}} for s in (20, 40)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return CellFiles(strategy, dataset, seed, folder)


def make_study(root, strategies=("random", NASTY), datasets=("nih14", "a_b%"), seeds=(0, 1)):
    grid = [(s, d, k) for d in datasets for s in strategies for k in seeds]
    return [make_cell(root, s, d, k, 0.4 + 0.8 * strategies.index(s), i) for i, (s, d, k) in enumerate(grid)]


def spoil(cell, split="test", **changes):
    """Replace fields of the predictions of one cell, each by what its function makes of the good predictions."""
    path = cell.folder / f"predictions/{split}.parquet"
    good = read_predictions(path)
    fields = {
        name: getattr(good, name) for name in ("image_id", "patient_id", "findings", "targets", "scores", "extra")
    }
    write_predictions(path, Predictions(**fields | {name: change(good) for name, change in changes.items()}))


def result_of(cells, **changes):
    """Return the statistics of `cells`, few redraws of three metrics unless told otherwise."""
    return analyse([read_cell(cell) for cell in cells], OPTIONS.model_copy(update=changes))
