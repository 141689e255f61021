"""What a report is made from: the cells of a study and what their run folders hold."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import field_validator

from cxrdist.errors import UserError
from cxrdist.stats.options import StatisticsOptions
from cxrdist.stats.predictions import Predictions, read_predictions


@dataclass(frozen=True)
class CellFiles:
    """One cell of a study and its run folder, finished or not."""

    strategy: str
    dataset: str
    seed: int
    folder: Path
    variant: str = ""
    """Empty in a study without variants."""

    @property
    def rows(self) -> str:
        """Name of what it is compared within: its dataset and variant."""
        return row_name(self.dataset, self.variant)

    @property
    def label(self) -> str:
        """Name of the cell in sentences."""
        return f"{self.strategy} on {self.rows}, seed {self.seed}"


def row_name(dataset: str, variant: str) -> str:
    """Return what a report calls a dataset, or a variant of it: strategies are compared within one."""
    return f"{dataset}, {variant}" if variant else dataset


@dataclass(frozen=True)
class Guard:
    """One check of rigor; `detail` says what was seen."""

    name: str
    passed: bool
    detail: str


class ReportOptions(StatisticsOptions):
    """How the statistics of a report are made."""

    reference: str
    """Strategy that all others are compared with."""
    convention: Literal["tayebi2024"] | None = None
    """Another study's procedure, whose numbers are given besides, labelled as such: for its replication only."""
    metrics: tuple[str, ...] = ("auroc", "auprc", "sensitivity", "specificity", "f1", "mcc", "brier", "ece")
    """What is worked out; the AUROC comes first, the others stand in a table of their own.

    Calibration slope and intercept are fits, which take ten times as long as all of these.
    """

    @field_validator("metrics")
    @classmethod
    def _led_by_auroc(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names[:1] != ("auroc",):
            raise ValueError(f"must begin with auroc, which the report is about, got {', '.join(names) or 'none'}")
        return names

    @field_validator("averages")
    @classmethod
    def _led_by_macro(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if "macro" not in names:
            raise ValueError(f"must hold macro, the mean that the report leads with, got {', '.join(names) or 'none'}")
        return names


@dataclass(frozen=True)
class Cell:
    """The content of one run folder; what is not there is None, empty, or told in `faults`."""

    files: CellFiles
    val: Predictions | None
    test: Predictions | None
    metrics: tuple[dict[str, Any], ...]
    """Lines of metrics.jsonl by step; a step that was run again after a restart is there once, as it ended."""
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    train_images: int | None
    """Images it was trained on, as result.json has it; None if that is not there."""
    faults: tuple[str, ...]
    """A sentence for each file that should be there and is not, or cannot be read."""

    @property
    def label(self) -> str:
        """Name of the cell in sentences."""
        return self.files.label

    def fact(self, *names: str) -> Any:
        """Return the shallowest value in config.yaml, else environment.json, under any of `names`; None if absent."""
        for tree in (self.config, self.environment):
            found = _find(tree, names)
            if found is not None:
                return found
        return None


def read_cell(files: CellFiles) -> Cell:
    """Return what the run folder of one cell holds; never raises for a missing or broken file."""
    faults: list[str] = []
    label = files.label
    predictions: dict[str, Predictions | None] = {"val": None, "test": None}
    paths = {split: files.folder / "predictions" / f"{split}.parquet" for split in predictions}
    absent = [split for split, path in paths.items() if not path.is_file()]
    if absent:
        faults.append(f"{label}: no {' and no '.join(absent)} predictions.")
    for split, path in paths.items():
        if split in absent:
            continue
        try:
            predictions[split] = read_predictions(path)
        except UserError as error:
            faults.append(f"{label}: {error}")
    metrics, torn = _read_metrics(files.folder / "metrics.jsonl")
    if torn:
        faults.append(f"{label}: {torn} unreadable line{'s' * (torn != 1)} of metrics.jsonl left out.")
    images = _read_mapping(files.folder / "result.json").get("train_images")
    return Cell(
        files=files,
        val=predictions["val"],
        test=predictions["test"],
        metrics=metrics,
        config=_read_mapping(files.folder / "config.yaml"),
        environment=_read_mapping(files.folder / "environment.json"),
        train_images=images if isinstance(images, int) else None,
        faults=tuple(faults),
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a.b": value}`` for the leaves of nested mappings."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _read_metrics(path: Path) -> tuple[tuple[dict[str, Any], ...], int]:
    lines: dict[tuple[int, str], dict[str, Any]] = {}
    torn = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
            lines[int(line["step"]), str(line["kind"])] = line
        except (ValueError, KeyError, TypeError):
            torn += 1
    return tuple(lines[key] for key in sorted(lines)), torn


def _read_mapping(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _find(tree: Mapping[str, Any], names: Sequence[str]) -> Any:
    flat = flatten(tree)
    for dotted in sorted(flat, key=lambda key: key.count(".")):
        if dotted.rpartition(".")[2] in names and flat[dotted] is not None:
            return flat[dotted]
    return None
