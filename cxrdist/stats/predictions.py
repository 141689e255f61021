"""Prediction files: ``image_id, patient_id, y_<finding>, p_<finding>`` and any further columns, as parquet or csv.

Shapes: N images, K findings.  Ids are pseudonyms, so an error may show a few of them.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxrdist.errors import UsageError, nearest
from cxrdist.stats.meanings import AVERAGES
from cxrdist.stats.prediction_tables import IDS, LONGEST, MISSING, SCORE, TARGET, read_table, shown

SHOWN = 3
"""How many image ids an error shows."""
FAULTS_SHOWN = 5
UNCERTAIN = -1
"""How CheXpert and MIMIC-CXR write an uncertain label."""
ROUNDING = 1e-5
"""What float32 arithmetic can add to a probability."""
SURELY_NO_LOGIT = 30
"""Above it a sigmoid is 1 within float64's last digits."""


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
        """Return the images that `order` picks: (n,) numbers, or an (N,) mask."""
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

    Ids are text and kept as written, so ``007`` is not ``7``; whole numbers in parquet are their digits.  Labels may
    be numbers, booleans or text of either.

    Raises:
        UsageError: One sentence per fault: missing file or columns, empty ids, duplicate `image_id`, a probability
            outside [0, 1] or absent, a label other than 0, 1 or null, no pair of ``y_`` and ``p_`` columns.
    """
    path = Path(path)
    table = read_table(path)
    where = f" [in {shown(path.name)}]"
    names = list(table.columns)
    faults = [
        f"A prediction file must have a column `{name}`, got none{where}.{nearest(name, names)}"
        for name in IDS
        if name not in names
    ]
    findings, unpaired = _pairs(names)
    faults += [f"{sentence}{where}.{near}" for sentence, near in unpaired]
    if not findings and not unpaired:
        faults.append(f"A prediction file must have a pair of columns `y_<finding>`, `p_<finding>`, got none{where}.")
    if not len(table):
        faults.append(f"A prediction file must have rows, got none{where}.")
    _refuse(faults)
    for name in IDS:
        empty = [not isinstance(value, str) or not value.strip() for value in table[name]]
        if any(empty):
            faults.append(f"Column `{name}` must have a value in every row, got {sum(empty)} empty{where}.")
    if not faults and table["image_id"].duplicated().any():
        twice = table["image_id"][table["image_id"].duplicated()].unique()
        what = f"{len(twice)} value{_s(twice)} more than once ({_some(twice)})"
        faults.append(f"Column `image_id` must be unique, got {what}{where}.")
    targets, scores = np.empty((len(table), len(findings))), np.empty((len(table), len(findings)))
    for k, finding in enumerate(findings):
        targets[:, k], wrong_target, target_way_out = _labels(table[TARGET + finding])
        scores[:, k], wrong_score, score_way_out = _probabilities(table[SCORE + finding])
        if wrong_target:
            faults.append(f"Column `{shown(TARGET + finding)}` {wrong_target}{where}.{target_way_out}")
        if wrong_score:
            faults.append(f"Column `{shown(SCORE + finding)}` {wrong_score}{where}.{score_way_out}")
    _refuse(faults)
    used = {*IDS, *(prefix + finding for finding in findings for prefix in (TARGET, SCORE))}
    extra = {name: table[name].to_numpy() for name in names if name not in used}
    image_id, patient_id = (table[name].to_numpy(dtype=object) for name in IDS)
    return Predictions(image_id, patient_id, tuple(findings), targets, scores, extra)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write `predictions` by `image_id`, as csv if `path` ends so, else parquet; the same input gives the same bytes.

    The file appears complete or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    predictions = _sorted(predictions)
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
        UsageError: If the images, their patients or their labels differ between files: which file, how many, the first
            few image ids.  Numbers from different images, or of different truths, cannot be compared as pairs.  Also
            if no file has a label, or a finding bears the name of an average.
    """
    if not files:
        raise UsageError("A comparison must have at least one prediction file, got none.")
    (first, reference), *others = ((name, _sorted(one)) for name, one in files.items())
    shared = [name for name in reference.findings if all(name in one.findings for _, one in others)]
    if not shared:
        raise UsageError(f"Prediction files must share a finding, got none common to {', '.join(files)}.")
    faults = [
        f"A finding must not be named {name!r}, the word for an average over findings, got the column "
        f"`{TARGET}{name}`. Rename it."
        for name in shared
        if name in AVERAGES
    ]
    repeated = [name for name, one in [(first, reference), *others] if len(set(one.image_id)) != len(one)]
    faults += [f"Column `image_id` must be unique, got an image more than once [in {name}]." for name in repeated]
    for name, one in others if not faults else []:
        faults += _differences(first, reference, name, one, shared)
    if not faults and np.isnan(reference.only(shared).targets).all():
        columns = _some([TARGET + name for name in shared])
        faults.append(f"Prediction files must have labels, got none in any row of {columns} [in {first}].")
    _refuse(faults)
    everything = {first: reference, **dict(others)}
    dropped = {name: tuple(k for k in one.findings if k not in shared) for name, one in everything.items()}
    return Aligned(
        predictions={name: one.only(shared) for name, one in everything.items()},
        dropped={name: left_out for name, left_out in dropped.items() if left_out},
    )


def check_patients(predictions: Predictions, cluster: str) -> None:
    """Refuse what cannot be redrawn: fewer than two patients, or images where `cluster` is ``"none"``.

    Each redraw of a single unit is the sample itself, so its interval would have no width: a claim of certainty.

    Raises:
        UsageError: If there are fewer than two units.
    """
    if cluster == "none":
        if len(predictions) < 2:
            raise UsageError(f"A bootstrap of images must have at least two images, got {len(predictions)}.")
        return
    patients = sorted(set(predictions.patient_id))
    if len(patients) < 2:
        images = f"{len(patients)} ({_some(patients)}) with {len(predictions)} image{'s' * (len(predictions) != 1)}"
        raise UsageError(
            f"A bootstrap of patients must have at least two patients, got {images}. Check the column `patient_id`."
        )


def _differences(first: str, reference: Predictions, name: str, one: Predictions, shared: Sequence[str]) -> list[str]:
    # Sets, since numpy compares objects each with each.
    missing = sorted(set(reference.image_id) - set(one.image_id))
    surplus = sorted(set(one.image_id) - set(reference.image_id))
    if missing or surplus:
        parts = [
            f"{len(ids)} {what} ({_some(ids)})" for ids, what in ((missing, "missing"), (surplus, "more")) if len(ids)
        ]
        way_out = _nearly(missing, surplus) or "Predict the same split."
        return [f"{name} must have the same images as {first}, got {' and '.join(parts)}. {way_out}"]
    faults = []
    other_patient = reference.patient_id != one.patient_id
    if other_patient.any():
        ids = reference.image_id[other_patient]
        way_out = _nearly(reference.patient_id[other_patient], one.patient_id[other_patient])
        faults.append(
            f"{name} must name the same patients as {first}, got {len(ids)} other{_s(ids)} ({_some(ids)}). {way_out}"
        )
    for finding in shared:
        mine = reference.targets[:, reference.findings.index(finding)]
        theirs = one.targets[:, one.findings.index(finding)]
        other = ~((mine == theirs) | (np.isnan(mine) & np.isnan(theirs)))
        if other.any():
            ids = reference.image_id[other]
            faults.append(
                f"{name} must have the same labels as {first}, got {len(ids)} other{_s(ids)} in column "
                f"`{shown(TARGET + finding)}` ({_some(ids)}). Predict with the same label policy."
            )
    return [fault.rstrip() for fault in faults]


def _nearly(mine: Iterable[str], theirs: Iterable[str]) -> str:
    """Return a way out if ids of two files differ only as spreadsheets and file names make them differ."""
    alike = len({_bare(one) for one in mine} & {_bare(one) for one in theirs})
    if not alike:
        return ""
    return f"Ids must match to the letter; {alike} would but for case, spaces, leading zeros or an ending."


def _bare(text: str) -> str:
    return re.sub(r"\.(0+|png|jpe?g|dcm|dicom|tiff?)$", "", text.strip().casefold()).lstrip("0")


def _sorted(predictions: Predictions) -> Predictions:
    return predictions.rows(np.argsort(predictions.image_id.astype(object), kind="stable"))


def _refuse(faults: Sequence[str]) -> None:
    """Raise `faults`, a line each; of very many (one per finding) the first few."""
    if faults:
        more = len(faults) - FAULTS_SHOWN
        raise UsageError("\n".join([*faults[:FAULTS_SHOWN], *([f"And {more} more such faults."] if more > 0 else [])]))


def _pairs(names: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the findings with both columns, in order; and for each column alone a sentence and the nearest name."""
    findings = [name[len(SCORE) :] for name in names if name.startswith(SCORE) and TARGET + name[len(SCORE) :] in names]
    faults = []
    for name in names:
        for mine, partner in ((TARGET, SCORE), (SCORE, TARGET)):
            want = partner + name[len(mine) :]
            if name.startswith(mine) and want not in names:
                near = nearest(want, [other for other in names if other.startswith(partner)])
                faults.append((f"Column `{shown(name)}` must have its partner `{shown(want)}`, got none", near))
    return findings, faults


def _labels(column: pd.Series) -> tuple[np.ndarray, str, str]:
    """Return (N,) labels with NaN for masked, and if any is wrong what the rule is and the way out."""
    values, empty = _numbers(column)
    wrong = ~(empty | (values == 0) | (values == 1))
    if not wrong.any():
        return values, "", ""
    way_out = " Uncertain labels need a label policy first." if (values[wrong] == UNCERTAIN).any() else ""
    return values, f"must be 0, 1 or empty, got {_first(column, wrong)} in {_rows(wrong)}", way_out


def _probabilities(column: pd.Series) -> tuple[np.ndarray, str, str]:
    """Return (N,) probabilities, and if any is wrong what the rule is and the way out."""
    values, _ = _numbers(column)
    wrong = ~((values >= 0) & (values <= 1))
    if not wrong.any():
        return values + 0.0, "", ""  # -0.0 becomes 0.0: they tie, so they should be the same bits as well
    rule = f"must be a probability in [0, 1], got {_first(column, wrong)} in {_rows(wrong)}"
    outside = values[wrong & np.isfinite(values)]
    if not len(outside):
        return values, rule, ""
    low, high = outside.min(), outside.max()
    if low > -ROUNDING and high < 1 + ROUNDING:
        return values, rule, " It looks like rounding; clip it."
    if low > 1 and SURELY_NO_LOGIT < high <= 100:
        return values, rule, " It looks like percent; divide by 100."
    return values, rule, " It looks like logits; apply a sigmoid."


def _numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) float64, NaN where there is no number, and (N,) whether nothing was given there."""
    if not pd.api.types.is_numeric_dtype(column.dtype):
        column = pd.Series([_plain(value) for value in column], dtype=object)
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return values, column.isna().to_numpy()


def _plain(value: object) -> object:
    if not isinstance(value, str):
        return value
    word = value.strip()
    return None if word in MISSING else {"true": 1, "false": 0}.get(word.casefold(), word)


def _first(column: pd.Series, wrong: np.ndarray) -> str:
    value = column[wrong].iloc[0]
    if isinstance(value, str) and value not in MISSING:
        return repr(value if len(value) <= LONGEST else value[: LONGEST - 3] + "...")
    if pd.isna(value) or isinstance(value, str):
        return "nothing or NaN"
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def _rows(wrong: np.ndarray) -> str:
    return f"{int(wrong.sum())} row{_s(np.flatnonzero(wrong))}"


def _some(ids: Sequence[str] | np.ndarray) -> str:
    return ", ".join(shown(one) for one in ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")


def _s(items: np.ndarray) -> str:
    return "" if len(items) == 1 else "s"
