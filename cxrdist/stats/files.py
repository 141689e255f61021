"""The prediction files of each model: one, or one per training seed.  Shapes: N images, K findings, S files."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cxrdist.errors import UsageError, unknown
from cxrdist.stats.levels import values_told
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.options import StatisticsOptions
from cxrdist.stats.prediction_tables import shown
from cxrdist.stats.predictions import SHOWN, Predictions
from cxrdist.stats.threshold import choose_threshold

FEWEST_SEEDS = 4
"""Seeds from which redraws of them have a standard deviation, as Student's t has above 2 degrees of freedom."""

Files = Predictions | Sequence[Predictions]
"""A model's prediction file, or its files (one per training seed)."""

Groups = dict[str, list[str]]
"""Model -> labels of its files."""


def by_seed(
    predictions: Mapping[str, Files],
    validation: Mapping[str, Files] | None,
    train_seeds: Mapping[str, Sequence[int]],
) -> tuple[dict[str, Files], dict[str, Files] | None, dict[str, tuple[int, ...]]]:
    """Return all three with the files of each model by ascending training seed, where its seeds are known.

    Sums over files are then made in one order, so that the order in which files are named changes no bit.

    Raises:
        ValueError: If the seeds of a model are not as many different ones as it has files.
    """
    tests, told, seeds = dict(predictions), None if validation is None else dict(validation), {}
    for name, given in train_seeds.items():
        if name not in tests:
            continue
        files = _listed(tests[name])
        if len(given) != len(files) or len(set(given)) != len(files):
            raise ValueError(
                f"`train_seeds` must be {len(files)} different numbers, one per file, got {list(given)} [{name}]."
            )
        order = sorted(range(len(files)), key=given.__getitem__)
        seeds[name] = tuple(int(given[i]) for i in order)
        tests[name] = [files[i] for i in order]
        if told is not None and name in told and len(_listed(told[name])) == len(files):
            told[name] = [_listed(told[name])[i] for i in order]
    return tests, told, seeds


def labels_of(predictions: Mapping[str, Files]) -> Groups:
    """Return a name for each file of each model: the model's own where it has one file."""
    groups = {}
    for name, files in predictions.items():
        several = len(_listed(files))
        groups[name] = [name] if several == 1 else [f"{name} (file {i + 1})" for i in range(several)]
    return groups


def check_seeds(groups: Groups, options: StatisticsOptions) -> None:
    """Refuse what has no standard deviation: shifts of Student's t with one or two degrees of freedom.

    Raises:
        UsageError: If max-T is asked for with seeds redrawn, of a model with 2 to `FEWEST_SEEDS` - 1 of them.
    """
    if not (options.hierarchical and options.correction == "max_t"):
        return
    for name, labels in groups.items():
        if 1 < len(labels) < FEWEST_SEEDS:
            raise UsageError(
                f"`correction` max_t with `hierarchical` must have {FEWEST_SEEDS} training seeds or more of a model "
                f"(or one), got {len(labels)} of {name}. Of so few, redraws have no standard deviation to measure "
                "differences in; correct by holm."
            )


def by_label(groups: Groups, predictions: Mapping[str, Files]) -> dict[str, Predictions]:
    """Return every file under its label."""
    pairs = ((labels, _listed(predictions[name])) for name, labels in groups.items())
    return {label: one for labels, files in pairs for label, one in zip(labels, files, strict=True)}


def stacked(arrays: Mapping[str, np.ndarray], groups: Groups) -> dict[str, np.ndarray]:
    """Return model -> (S, ...): the arrays, (...) each, of its S files."""
    return {name: np.stack([arrays[label] for label in labels]) for name, labels in groups.items()}


def shared_column(files: Mapping[str, Predictions], name: str) -> np.ndarray:
    """Return (N,) a further column of `files`, which hold the same images in the same order; some may lack it.

    Values are the same where they are told alike: 63, 63.0 and the text 63 are.

    Raises:
        UsageError: If no file has the column, or two that have it differ: a subgroup would be other images by each.
    """
    holding = {label: one for label, one in files.items() if name in one.extra}
    if not holding:
        known = list(dict.fromkeys(column for one in files.values() for column in one.extra))
        if known:
            raise UsageError(unknown("A subgroup column", name, known))
        raise UsageError(
            f"A subgroup column must be in the prediction files, got {name!r} and files with ids, labels and "
            "probabilities alone. Add the column."
        )
    (first, base), *others = holding.items()
    expected = values_told(base.extra[name])
    faults = []
    for label, one in others:
        other = values_told(one.extra[name]) != expected
        if other.any():
            ids = one.image_id[other]
            some = ", ".join(shown(image) for image in ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
            faults.append(
                f"{label} must have the same values as {first} in column `{shown(name)}`, got {len(ids)} "
                f"other{'s' * (len(ids) != 1)} ({some}). Take the column from one source."
            )
    if faults:
        raise UsageError("\n".join(faults))
    return base.extra[name]


def validation_thresholds(
    groups: Groups, validation: Mapping[str, Files] | None, test: Predictions, options: StatisticsOptions
) -> dict[str, np.ndarray]:
    """Return label -> (K,) thresholds, chosen on the file's own validation predictions; empty if none is needed.

    NaN where a validation file does not have a finding, or one class of it only.

    Raises:
        UsageError: If a model has no validation predictions, others than of validation, or of none of the findings.
    """
    needing = [name for name in options.metrics if METRICS[name].needs_threshold]
    if not needing:
        return {}
    if validation is None or set(validation) != set(groups):
        given = ", ".join(validation or ()) or "none"
        raise UsageError(
            f"Metric `{needing[0]}` must have validation predictions of every model to choose thresholds on, got "
            f"{given}. A threshold chosen on the test split would flatter every rate reported there."
        )
    found = {}
    for name, labels in groups.items():
        files = _listed(validation[name])
        if len(files) != len(labels):
            raise UsageError(
                f"{name} must have as many validation files as test files ({len(labels)}), got {len(files)}."
            )
        for label, one in zip(labels, files, strict=True):
            _check_validation(label, one, test)
            found[label] = np.array([_threshold(one, finding, options.threshold) for finding in test.findings])
    return found


def _check_validation(label: str, one: Predictions, test: Predictions) -> None:
    shared = set(one.patient_id) & set(test.patient_id)
    if shared:
        raise UsageError(
            f"Validation predictions must be of other patients than the test predictions, got {len(shared)} of the "
            f"same [{label}]. Predict the validation split."
        )
    if not set(test.findings) & set(one.findings):
        raise UsageError(
            "Validation predictions must have the findings of the test predictions, got none of "
            f"{', '.join(test.findings)} [{label}]."
        )


def _threshold(one: Predictions, finding: str, rule: str) -> float:
    if finding not in one.findings:
        return math.nan
    k = one.findings.index(finding)
    return choose_threshold(one.targets[:, k], one.scores[:, k], rule)


def _listed(files: Files) -> list[Predictions]:
    return [files] if isinstance(files, Predictions) else list(files)
