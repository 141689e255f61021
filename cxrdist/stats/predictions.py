"""Prediction files: ``image_id, patient_id, y_<finding>, p_<finding>`` and any further columns, as parquet or csv.

Shapes: N images, K findings.  Ids are pseudonyms, so an error may show a few of them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxrdist.errors import UserError, nearest

TARGET, SCORE = "y_", "p_"
IDS = ("image_id", "patient_id")
SHOWN = 3
"""How many image ids an error shows."""


@dataclass(frozen=True)
class Predictions:
    """What one model said about one split, and what was true."""

    image_id: np.ndarray
    """(N,) text, unique."""
    patient_id: np.ndarray
    """(N,) text."""
    findings: tuple[str, ...]
    targets: np.ndarray
    """(N, K) float64 of 1, 0, NaN for masked."""
    scores: np.ndarray
    """(N, K) float64 probabilities in [0, 1]."""
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further columns (sex, age, projection ...), each (N,)."""

    def __len__(self) -> int:
        return len(self.image_id)

    def rows(self, order: np.ndarray) -> "Predictions":
        """Return the images that the index array or mask `order` picks."""
        return replace(
            self,
            image_id=self.image_id[order],
            patient_id=self.patient_id[order],
            targets=self.targets[order],
            scores=self.scores[order],
            extra={name: column[order] for name, column in self.extra.items()},
        )

    def only(self, findings: Sequence[str]) -> "Predictions":
        """Return the same images with `findings` alone, in that order."""
        columns = [self.findings.index(name) for name in findings]
        return replace(self, findings=tuple(findings), targets=self.targets[:, columns], scores=self.scores[:, columns])


@dataclass(frozen=True)
class Aligned:
    """Prediction files brought to the same rows in the same order, with the findings they share."""

    predictions: dict[str, Predictions]
    dropped: dict[str, tuple[str, ...]]
    """File -> findings it has that not all others have, left out."""


def read_predictions(path: Path) -> Predictions:
    """Return the checked content of a prediction file; ``.csv`` is read as csv, ``.parquet`` as parquet.

    Raises:
        UserError: One sentence per fault: missing file or columns, empty ids, duplicate `image_id`, a probability
            outside [0, 1] or absent, a label other than 0, 1 or null, no pair of ``y_`` and ``p_`` columns.
    """
    path = Path(path)
    table = _read_table(path)
    where = f" [in {path.name}]"
    faults = [f"A prediction file must have a column `{name}`, got none{where}." for name in IDS if name not in table]
    findings, unpaired = _pairs([str(name) for name in table.columns])
    faults += [f"{sentence}{where}." for sentence in unpaired]
    if not findings and not unpaired:
        faults.append(f"A prediction file must have a pair of columns `y_<finding>`, `p_<finding>`, got none{where}.")
    if not len(table):
        faults.append(f"A prediction file must have rows, got none{where}.")
    if faults:
        raise UserError("\n".join(faults))
    ids = {name: table[name] for name in IDS}
    for name, column in ids.items():
        empty = column.isna() | (column.astype(str).str.strip() == "")
        if empty.any():
            faults.append(f"Column `{name}` must have a value in every row, got {int(empty.sum())} empty{where}.")
    image_id = ids["image_id"].astype(str).to_numpy(dtype=object)
    if not faults and ids["image_id"].duplicated().any():
        twice = ids["image_id"][ids["image_id"].duplicated()].unique()
        what = f"{len(twice)} value{_s(twice)} more than once ({_some(twice)})"
        faults.append(f"Column `image_id` must be unique, got {what}{where}.")
    targets, scores = np.empty((len(table), len(findings))), np.empty((len(table), len(findings)))
    for k, finding in enumerate(findings):
        targets[:, k], wrong_target = _labels(table[TARGET + finding])
        scores[:, k], wrong_score = _probabilities(table[SCORE + finding])
        faults += [f"Column `{TARGET}{finding}` {wrong_target}{where}."] if wrong_target else []
        faults += [f"Column `{SCORE}{finding}` {wrong_score}{where}."] if wrong_score else []
    if faults:
        raise UserError("\n".join(faults))
    used = {*IDS, *(prefix + finding for finding in findings for prefix in (TARGET, SCORE))}
    extra = {str(name): table[name].to_numpy() for name in table.columns if name not in used}
    patient_id = ids["patient_id"].astype(str).to_numpy(dtype=object)
    return Predictions(image_id, patient_id, tuple(findings), targets, scores, extra)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write `predictions` by `image_id`, as csv if `path` ends so, else parquet; the same input gives the same bytes.

    The file appears complete or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    predictions = predictions.rows(np.argsort(predictions.image_id.astype(str), kind="stable"))
    columns: dict[str, pa.Array] = {
        "image_id": pa.array(predictions.image_id.astype(str), pa.string()),
        "patient_id": pa.array(predictions.patient_id.astype(str), pa.string()),
    }
    for name, values in predictions.extra.items():
        columns[name] = pa.Array.from_pandas(pd.Series(values))
    for k, finding in enumerate(predictions.findings):
        target = predictions.targets[:, k]
        masked = np.isnan(target)
        columns[TARGET + finding] = pa.array(np.where(masked, 0, target).astype(np.int8), pa.int8(), mask=masked)
    for k, finding in enumerate(predictions.findings):
        columns[SCORE + finding] = pa.array(predictions.scores[:, k], pa.float64())
    table = pa.table(columns)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.suffix == ".csv":
            table.to_pandas(integer_object_nulls=True).to_csv(partial, index=False, lineterminator="\n")
        else:
            pq.write_table(table, partial, compression="zstd")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def align(files: Mapping[str, Predictions]) -> Aligned:
    """Return `files` sorted by `image_id` and restricted to the findings all of them have.

    Raises:
        UserError: If the images, their patients or their labels differ between files: which file, how many, the first
            few image ids.  Numbers from different images, or of different truths, cannot be compared as pairs.
    """
    if not files:
        raise UserError("A comparison must have at least one prediction file, got none.")
    (first, reference), *others = ((name, _sorted(one)) for name, one in files.items())
    shared = [name for name in reference.findings if all(name in one.findings for _, one in others)]
    if not shared:
        raise UserError(f"Prediction files must share a finding, got none common to {', '.join(files)}.")
    faults = []
    for name, one in others:
        faults += _differences(first, reference, name, one, shared)
    if faults:
        raise UserError("\n".join(faults))
    everything = {first: reference, **dict(others)}
    dropped = {name: tuple(k for k in one.findings if k not in shared) for name, one in everything.items()}
    return Aligned(
        predictions={name: one.only(shared) for name, one in everything.items()},
        dropped={name: left_out for name, left_out in dropped.items() if left_out},
    )


def _differences(first: str, reference: Predictions, name: str, one: Predictions, shared: Sequence[str]) -> list[str]:
    missing = np.setdiff1d(reference.image_id, one.image_id)
    surplus = np.setdiff1d(one.image_id, reference.image_id)
    if len(missing) or len(surplus):
        parts = [
            f"{len(ids)} {what} ({_some(ids)})" for ids, what in ((missing, "missing"), (surplus, "more")) if len(ids)
        ]
        return [f"{name} must have the same images as {first}, got {' and '.join(parts)}. Predict the same split."]
    faults = []
    other_patient = reference.patient_id != one.patient_id
    if other_patient.any():
        ids = reference.image_id[other_patient]
        faults.append(f"{name} must name the same patients as {first}, got {len(ids)} other{_s(ids)} ({_some(ids)}).")
    for finding in shared:
        mine = reference.targets[:, reference.findings.index(finding)]
        theirs = one.targets[:, one.findings.index(finding)]
        other = ~((mine == theirs) | (np.isnan(mine) & np.isnan(theirs)))
        if other.any():
            ids = reference.image_id[other]
            faults.append(
                f"{name} must have the same labels as {first}, got {len(ids)} other{_s(ids)} in column "
                f"`{TARGET}{finding}` ({_some(ids)}). Predict with the same label policy."
            )
    return faults


def _sorted(predictions: Predictions) -> Predictions:
    return predictions.rows(np.argsort(predictions.image_id.astype(str), kind="stable"))


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"A prediction file must exist, got {path.name!r}. Check the path.")
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"A prediction file must end in .csv or .parquet, got {path.name!r}.")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=dict.fromkeys(IDS, str))
    except (ValueError, OSError, pa.ArrowException) as error:
        kind = path.suffix.removeprefix(".")
        raise UserError(f"A prediction file must be {kind}, got an unreadable one [in {path.name}].") from error


def _pairs(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the findings with both columns, in order, and a sentence for each column without its partner."""
    findings = [name[len(SCORE) :] for name in names if name.startswith(SCORE) and TARGET + name[len(SCORE) :] in names]
    faults = []
    for name in names:
        for mine, partner in ((TARGET, SCORE), (SCORE, TARGET)):
            if name.startswith(mine) and name not in IDS and partner + name[len(mine) :] not in names:
                want = partner + name[len(mine) :]
                near = nearest(want, [other for other in names if other.startswith(partner) and other not in IDS])
                faults.append(f"Column `{name}` must have its partner `{want}`, got none.{near}".rstrip("."))
    return findings, faults


def _labels(column: pd.Series) -> tuple[np.ndarray, str]:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = (np.isnan(values) & ~column.isna().to_numpy()) | ~(np.isnan(values) | (values == 0) | (values == 1))
    example = _first(column, wrong) if wrong.any() else ""
    rule = f"must be 0, 1 or empty, got {example} in {int(wrong.sum())} row{_s(np.flatnonzero(wrong))}"
    return values, rule if wrong.any() else ""


def _probabilities(column: pd.Series) -> tuple[np.ndarray, str]:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = ~((values >= 0) & (values <= 1))
    if not wrong.any():
        return values, ""
    example = _first(column, wrong)
    return (
        values,
        f"must be a probability in [0, 1], got {example} in {int(wrong.sum())} row{_s(np.flatnonzero(wrong))}",
    )


def _first(column: pd.Series, wrong: np.ndarray) -> str:
    value = column[wrong].iloc[0]
    return "nothing" if pd.isna(value) else repr(value) if isinstance(value, str) else f"{value:g}"


def _some(ids: np.ndarray) -> str:
    return ", ".join(str(one) for one in ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")


def _s(items: np.ndarray) -> str:
    return "" if len(items) == 1 else "s"
