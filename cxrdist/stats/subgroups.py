"""Subgroups of the test sample: the metric in each, and its gap to the rest.

Shapes: N images, K findings, S files (training seeds) of a model, R redraws, P units (patients, or images).

The gap is worked out inside each redraw, because a level and the rest are redrawn together and may share patients
(projection, age).  A level is told with the number that it has, or with why it has none; none is dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cxrdist.errors import UsageError
from cxrdist.stats.families import Correction, adjust_redrawn
from cxrdist.stats.inference import paired_test
from cxrdist.stats.intervals import Interval, IntervalMethod, interval
from cxrdist.stats.levels import MISSING, subgroup_masks
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.metrics import METRICS, Metric
from cxrdist.stats.resample import MapFunction, Units, full_sample, jackknife, redraw
from cxrdist.stats.seeds import mean_over_files
from cxrdist.stats.undefined import MOST_UNDEFINED, NEEDS, too_few_left

FEWEST = 10
"""Images, and patients, with and without the finding that a number needs, unless told otherwise."""

Combine = Callable[[str, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""``(model, theta (R, S, K), point (S, K)) -> (R, K), (K,)``: makes a model's files one, as `combine_seeds` does."""


@dataclass(frozen=True)
class SubgroupPlan:
    """What is worked out in every subgroup, and how."""

    n_resamples: int
    seed: int
    metric: Metric = METRICS["auroc"]
    thresholds: Mapping[str, np.ndarray] | None = None
    """Model -> (K,) or (S, K), chosen on validation data; needed where the metric needs one."""
    confidence_level: float = 0.95
    method: IntervalMethod = "percentile"
    minimum: int = FEWEST
    """Images, and patients, with and without the finding that a number needs; 1 or more."""
    combine: Combine | None = None
    """How the files of a model become one; None: their mean."""
    correction: Correction = "bh"
    """How p-values are adjusted over a column's gaps."""


@dataclass(frozen=True)
class SubgroupRow:
    """One model on one finding in one level of a column; NaN where there is no number, and `note` says why."""

    model: str
    finding: str
    """Or `MACRO`: the mean over the findings that have a number in the level and, for the gap, in the rest."""
    column: str
    level: str
    n_images: int
    """Images of the level with a label (`MACRO`: all)."""
    n_patients: int
    n_positive: int | None
    """Of these images; None for `MACRO`."""
    n_findings: int | None
    """`MACRO`: how many findings the mean is over; else None."""
    value: float
    low: float
    high: float
    gap: float
    """Value in the level minus that in the rest; for `MACRO` over findings that have both."""
    gap_low: float
    gap_high: float
    p: float
    """Two-sided, that there is no gap; none where too many redraws have no gap."""
    q: float
    """p adjusted over all models and levels of the column: findings are one family, macro means another."""
    undefined: int
    """Redraws in which there was no value, left out."""
    note: str


def compare_subgroups(
    targets: np.ndarray,
    scores: Mapping[str, np.ndarray],
    findings: Sequence[str],
    columns: Mapping[str, np.ndarray],
    units: Units,
    *,
    plan: SubgroupPlan,
    patients: np.ndarray | None = None,
    map: MapFunction = map,
) -> list[SubgroupRow]:
    """Return a row per column, level, model and finding, the mean over findings (`MACRO`) the last of them.

    Whether a level differs is told by the interval of its gap, not by two intervals or p-values side by side (Altman &
    Bland 2003, BMJ 326:219).

    The *rest* of a level is every image whose value is known and another; that of `MISSING` is every image whose value
    is known.  A number needs `plan.minimum` images, of as many patients, with the finding and as many without; the gap
    needs them in the rest as well.  The macro mean is over the findings that have both, so that a level is never held
    against a rest of other findings; the note names those left out.

    Args:
        targets: (N, K) of 1, 0, NaN for masked.
        scores: Model -> (N, K), or (S, N, K) of S files, whose mean is meant, inside each redraw.
        findings: K names.
        columns: Name -> (N,), see `subgroup_masks`.
        units: What is redrawn; the redraws are those of any other number with the same seed.
        plan: What is worked out.
        patients: (N,) ids to count patients by; None: the units.
        map: Where to work.

    Raises:
        ValueError: If shapes differ or thresholds are missing.
        UsageError: If the minimum or the number of redraws is below 1, or a column cannot be made into subgroups.
    """
    targets = np.asarray(targets, dtype=np.float64)
    files = {name: np.asarray(one, dtype=np.float64) for name, one in scores.items()}
    files = {name: one[None] if one.ndim == 2 else one for name, one in files.items()}
    _check(targets, files, findings, columns, plan)
    masks = {name: subgroup_masks(column, name) for name, column in columns.items()}  # all faults before any work
    ids = units.of_image if patients is None else np.unique(patients, return_inverse=True)[1]
    work = _Work(targets, files, tuple(findings), units, ids, plan, _limits(plan, files, len(findings)), map)
    rows = []
    for name, levels in masks.items():
        known = ~levels.get(MISSING, np.zeros(len(targets), dtype=bool))
        done: _Done = {}
        tested = [one for level, mask in levels.items() for one in work.rows(name, level, mask, known & ~mask, done)]
        rows += _adjusted(tested, plan.correction)
    return rows


@dataclass(frozen=True)
class _Tested:
    """A row, and what its q is worked out from."""

    row: SubgroupRow
    delta: np.ndarray  # (R,) the gap in each redraw
    about: frozenset[bytes]  # the level's images and the rest's: of two levels each is the other's rest, one test


def _adjusted(tested: Sequence[_Tested], correction: Correction) -> list[SubgroupRow]:
    """Return the rows of one column in their order, with q."""
    families: dict[bool, dict[tuple[str, str, frozenset[bytes]], _Tested]] = {True: {}, False: {}}
    for one in tested:
        families[one.row.finding == MACRO].setdefault((one.row.model, one.row.finding, one.about), one)
    q: dict[tuple[str, str, frozenset[bytes]], float] = {}
    for family in families.values():
        p, point = (np.array([getattr(one.row, name) for one in family.values()]) for name in ("p", "gap"))
        if len(p):
            delta = np.stack([one.delta for one in family.values()], axis=1)
            q.update(zip(family, adjust_redrawn(p, delta, point, correction), strict=True))
    return [replace(one.row, q=float(q[one.row.model, one.row.finding, one.about])) for one in tested]


@dataclass(frozen=True)
class _Work:
    """All that is the same for every level."""

    targets: np.ndarray
    files: Mapping[str, np.ndarray]  # model -> (S, N, K)
    findings: tuple[str, ...]
    units: Units
    ids: np.ndarray  # (N,) patients
    plan: SubgroupPlan
    thresholds: Mapping[str, np.ndarray]  # model -> (S, K), NaN where none is needed
    map: MapFunction

    def rows(self, column: str, level: str, inside: np.ndarray, rest: np.ndarray, done: "_Done") -> list[_Tested]:
        why = [[self._why_not(k, mask) for k in range(len(self.findings))] for mask in (inside, rest)]
        in_level, in_rest = (np.array([not reason for reason in reasons]) for reasons in why)
        in_both = in_level & in_rest
        ours = self._numbers(inside, in_level, in_both, done)
        theirs = self._numbers(rest, in_both, in_both, done)
        notes = [here or (f"No gap. In the rest: {there}" if there else "") for here, there in zip(*why, strict=True)]
        notes.append(self._macro_note(in_both))
        rows, about = [], frozenset((inside.tobytes(), rest.tobytes()))
        for model in self.files:
            for k, note in enumerate(notes):
                row = self._row(model, k, column, level, inside, ours[model], theirs[model])
                delta = ours[model].theta[:, k] - theirs[model].theta[:, k]
                if k == len(self.findings):
                    row = replace(row, n_findings=int(in_both.sum()))
                if np.isnan(row.gap):
                    where = "here" if np.isnan(row.value) else "in the rest"
                    told = note or f"{self.plan.metric.title} is undefined {where}."
                elif np.isnan(row.p):
                    delta = np.full_like(delta, np.nan)
                    told = (
                        f"{note} No p and no q: over {100 * MOST_UNDEFINED:g} % of the redraws are undefined.".strip()
                    )
                else:
                    told = note
                rows.append(_Tested(replace(row, note=told), delta, about))
        return rows

    def _why_not(self, k: int, mask: np.ndarray) -> str:
        """Return why a finding has no number within `mask`, or nothing."""
        for target, what in ((1, "with"), (0, "without")):
            held = mask & (self.targets[:, k] == target)
            images, patients = int(held.sum()), len(np.unique(self.ids[held]))
            if patients < self.plan.minimum:  # images are never fewer than patients
                return (
                    f"Too few {what} the finding: {images} image{_s(images)} of {patients} patient{_s(patients)}, "
                    f"{self.plan.minimum} of each are needed."
                )
            if target in NEEDS.get(self.plan.metric.name, ()) and len(np.unique(self.units.of_image[held])) < 2:
                # Redraws without it are undefined and left out, so that it would never vary.
                return f"All {images} image{_s(images)} {what} the finding {_are(images)} of one patient."
        return ""

    def _macro_note(self, in_both: np.ndarray) -> str:
        left_out = [name for name, held in zip(self.findings, in_both, strict=True) if not held]
        if not in_both.any():
            return "No finding has enough images in the level and in the rest."
        return f"Without {', '.join(left_out)}." if left_out else ""

    def _numbers(
        self, mask: np.ndarray, wanted: np.ndarray, averaged: np.ndarray, done: "_Done"
    ) -> dict[str, "_Numbers"]:
        """Return for each model the metric of the `wanted` findings within `mask`, and its macro mean."""
        within = mask.tobytes()
        chosen = [int(k) for k in np.flatnonzero(wanted)]
        missing = [k for k in chosen if (within, k) not in done]
        if missing:
            for k, one in zip(missing, self._worked_out(mask, missing), strict=True):
                done[within, k] = one
        n_left_out = self.units.n if self.plan.method == "bca" else 0
        numbers = {}
        for model in self.files:
            stacked = [np.full((n, len(self.findings) + 1), np.nan) for n in (self.plan.n_resamples, 1, n_left_out)]
            for i, everything in enumerate(stacked):
                for k in chosen:
                    everything[:, k] = done[within, k][model][i]
                if averaged.any():
                    everything[:, -1] = everything[:, :-1][:, averaged].mean(axis=1)
            numbers[model] = _Numbers(stacked[0], stacked[1][0], stacked[2])
        return numbers

    def _worked_out(self, mask: np.ndarray, chosen: Sequence[int]) -> list[dict[str, "_Columns"]]:
        """Return for each chosen finding model -> its number within `mask`, the model's files made one."""
        statistics = []
        for model, stack in self.files.items():
            for s, one in enumerate(stack):
                for k in chosen:
                    within = np.where(mask, self.targets[:, k], np.nan)
                    threshold = float(self.thresholds[model][s, k]) if self.plan.metric.needs_threshold else None
                    statistics.append(self.plan.metric.prepare(within, one[:, k], self.units, threshold))
        theta = redraw(statistics, self.units, n_resamples=self.plan.n_resamples, seed=self.plan.seed, map=self.map)
        point = full_sample(statistics, self.units)
        left_out = np.empty((0, len(statistics)))
        if self.plan.method == "bca":
            left_out = jackknife(statistics, self.units, map=self.map)
        combine = self.plan.combine or _mean_of_files
        found: list[dict[str, _Columns]] = [{} for _ in chosen]
        first = 0
        for model, stack in self.files.items():
            shape = (len(stack), len(chosen))
            mine = slice(first, first + len(stack) * len(chosen))
            combined, at = combine(model, theta[:, mine].reshape(-1, *shape), point[mine].reshape(shape))
            without = mean_over_files(left_out[:, mine].reshape(-1, *shape), axis=1)
            for i, columns in enumerate(found):
                columns[model] = (combined[:, i], at[i : i + 1], without[:, i])
            first = mine.stop
        return found

    def _row(
        self, model: str, k: int, column: str, level: str, mask: np.ndarray, ours: "_Numbers", theirs: "_Numbers"
    ) -> SubgroupRow:
        is_macro = k == len(self.findings)
        held = mask if is_macro else mask & ~np.isnan(self.targets[:, k])
        delta = ours.theta[:, k] - theirs.theta[:, k]
        gap = float(ours.point[k] - theirs.point[k])
        bounds = self._interval(self.plan.metric.interval, ours.theta[:, k], float(ours.point[k]), ours.without[:, k])
        gap_bounds = self._interval(interval, delta, gap, ours.without[:, k] - theirs.without[:, k])
        defined = not np.isnan(ours.point[k])
        return SubgroupRow(
            model=model,
            finding=MACRO if is_macro else self.findings[k],
            column=column,
            level=level,
            n_images=int(held.sum()),
            n_patients=len(np.unique(self.ids[held])),
            n_positive=None if is_macro else int((self.targets[mask, k] == 1).sum()),
            n_findings=None,
            value=float(ours.point[k]),
            low=bounds.low,
            high=bounds.high,
            gap=gap,
            gap_low=gap_bounds.low,
            gap_high=gap_bounds.high,
            p=float("nan") if np.isnan(gap) or too_few_left(delta) else paired_test(delta),
            q=float("nan"),
            undefined=int(np.isnan(ours.theta[:, k]).sum()) if defined else 0,
            note="",
        )

    def _interval(
        self, read_off: Callable[..., Interval], theta: np.ndarray, point: float, without: np.ndarray
    ) -> Interval:
        if np.isnan(point):
            return Interval(float("nan"), float("nan"))
        return read_off(
            theta,
            method=self.plan.method,
            confidence_level=self.plan.confidence_level,
            point=point,
            jackknife=without,
            strata=self.units.strata,
        )


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(R,), (1,), (P,): a number of one model on one finding in redraws, on the full sample, with each unit left out."""

_Done = dict[tuple[bytes, int], dict[str, _Columns]]
"""(images, finding) -> model -> columns: what a column's levels have in common is worked out once."""


@dataclass(frozen=True)
class _Numbers:
    """One model within one mask; the last of K + 1 columns is the macro mean."""

    theta: np.ndarray  # (R, K + 1)
    point: np.ndarray  # (K + 1,)
    without: np.ndarray  # (P, K + 1), or no rows where no jackknife is needed


def _mean_of_files(model: str, theta: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    del model
    return mean_over_files(theta, axis=1), mean_over_files(point, axis=0)


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _limits(plan: SubgroupPlan, files: Mapping[str, np.ndarray], n_findings: int) -> dict[str, np.ndarray]:
    """Return model -> (S, K) thresholds."""
    limits = {}
    for model, stack in files.items():
        given = None if plan.thresholds is None else plan.thresholds.get(model)
        if given is None and plan.metric.needs_threshold:
            raise ValueError(f"`thresholds` must be given for {plan.metric.name!r}, got none [{model}].")
        one = np.full((len(stack), n_findings), np.nan) if given is None else np.asarray(given, dtype=np.float64)
        limits[model] = np.broadcast_to(one, (len(stack), n_findings))
    return limits


def _check(
    targets: np.ndarray,
    files: Mapping[str, np.ndarray],
    findings: Sequence[str],
    columns: Mapping[str, np.ndarray],
    plan: SubgroupPlan,
) -> None:
    if targets.ndim != 2 or targets.shape[1] != len(findings):
        raise ValueError(f"`targets` must have the shape (N, {len(findings)}), got {targets.shape}.")
    for name, one in files.items():
        if one.ndim != 3 or one.shape[1:] != targets.shape or not len(one):
            raise ValueError(f"`scores` must have the shape {targets.shape} or (S, N, K), got {one.shape} [{name}].")
    for name, column in columns.items():
        if np.shape(column) != targets.shape[:1]:
            raise ValueError(f"A column must have the shape ({len(targets)},), got {np.shape(column)} [{name}].")
    if plan.minimum < 1:
        raise UsageError(f"`minimum` must be 1 or more, got {plan.minimum}.")
    if plan.n_resamples < 1:
        raise UsageError(f"`n_resamples` must be 1 or more, got {plan.n_resamples}.")
