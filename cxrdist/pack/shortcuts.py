"""How well a rule that never looks at the lungs tells each finding.

A rule is a category per image (its origin, its age in decades ...).  Its score is the finding's rate in that category
in the training split, its strength the AUROC of that score on a split that was held out.  On the training split itself
either half of the patients is scored by the rates of the other: nowhere is a rule judged by what it was fitted to.

Shapes: N samples, K findings, S splits, P = S + 1 parts (the training split is two), C categories.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrdist.config import Config
from cxrdist.datasets.shard_format import finding_column
from cxrdist.findings import NO_FINDING, LabelPolicy, apply_policy
from cxrdist.pack.contents import Contents
from cxrdist.stats.auroc import auroc

STRONG_AUROC = 0.8
"""From here on a rule is warned of, and what tells two folders apart."""
PURE = 0.95
"""From this purity on a label is called its source."""
FEWEST_CASES = 20
"""Patients with a finding, and without, below which an AUROC is too uncertain to be judged by."""
FEWEST_IN_CATEGORY = 10
"""Images to fit on below which a category gets the overall rate: its own would be chance."""
MOST_BINS = 10
"""Numbers are cut into so many equally full bins, or fewer where there are few images."""
FEWEST_IN_BIN = 4 * FEWEST_IN_CATEGORY
"""Of the training split; so a half of it has enough for a rate of its own."""
MASKED = 2


class Shortcut(Config):
    """One finding told by one rule."""

    finding: str
    rule: str
    auroc: dict[str, float | None]
    """By split; None where a class is missing.  The rates come from the first; its own is the mean of two halves."""
    positives: dict[str, int]
    """Patients with an image that shows the finding; images of one patient are no independent cases."""
    negatives: dict[str, int]
    """Patients with one that does not."""
    judged_on: str | None
    """The most held-out split with enough cases; None if there is none."""
    strength: float | None
    """The AUROC on the split it is judged on."""
    purity: float
    """Share of the positives in categories of mostly positives, or of the negatives in those of mostly negatives,
    whichever is less, over all splits.  1: every category holds one value only, so the label is the category."""


@dataclass(frozen=True)
class Rule:
    """A category per image."""

    name: str
    codes: np.ndarray
    """(N,) category of each image; -1 where it is not known and the image takes no part."""


def find_shortcuts(contents: Contents) -> list[Shortcut]:
    """Return every finding with every rule that has at least two categories, the strongest first.

    Labels are those of a training run that names no policy of its own: under the manifest's.
    """
    index, splits = contents.index, contents.splits
    targets = _targets(index, contents.manifest.findings, contents.manifest.policy)
    parts = pd.Categorical(index["split"], categories=splits).codes.astype(np.int64) + 1
    patients = pd.factorize(index["patient_id"], sort=True)[0]
    # Pseudonyms are keyed hashes, so every other patient is a random half.
    parts[(parts == 1) & (patients % 2 == 0)] = 0
    every = _cases(targets, parts, patients, len(splits))
    found = []
    for rule in _rules(contents, parts <= 1):
        categories = int(rule.codes.max(initial=-1)) + 1
        takes_part = rule.codes >= 0
        if len(np.unique(rule.codes[takes_part])) < 2:
            continue
        cases = every
        if not takes_part.all():
            cases = _cases(targets[takes_part], parts[takes_part], patients[takes_part], len(splits))
        cells = (parts * categories + rule.codes)[takes_part] * (MASKED + 1)
        shape = (len(splits) + 1, categories, MASKED + 1)
        for column, finding in enumerate(contents.manifest.findings):
            sums = np.bincount(cells + targets[takes_part, column], minlength=math.prod(shape)).reshape(shape)
            if sums[:, :, 0].any() and sums[:, :, 1].any():
                areas = _areas(sums[:, :, 1], sums[:, :, 0])
                purity = _purity(sums[:, :, 1].sum(axis=0), sums[:, :, 0].sum(axis=0))
                found.append(_shortcut(finding, rule.name, splits, areas, cases[column], purity))
    return sorted(found, key=lambda shortcut: (-(shortcut.strength or 0), shortcut.finding, shortcut.rule))


def shortcut_warnings(shortcuts: Sequence[Shortcut]) -> list[str]:
    """Return a sentence for each finding whose label is its source, and for each that a rule tells strongly."""
    sentences = []
    strong: dict[str, list[Shortcut]] = {}
    for shortcut in shortcuts:
        name = shortcut.finding
        cases = min(sum(counts.values()) for counts in (shortcut.positives, shortcut.negatives))
        if shortcut.rule == "origin" and shortcut.purity >= PURE and cases >= FEWEST_CASES:
            nearly = "" if shortcut.purity == 1 else "nearly "
            sentences.append(
                f"{name}: the label is {nearly}the source. Each origin has {nearly}one value of {name} only, so what a "
                f"model learns of it here may be the origin, and no test on this dataset can tell."
            )
        elif shortcut.strength is not None and shortcut.strength >= STRONG_AUROC:
            strong.setdefault(name, []).append(shortcut)
    for finding, ways in strong.items():
        told = " and ".join(f"by {way.rule} alone (AUROC {way.strength:.2f} on {way.judged_on})" for way in ways)
        sentences.append(f"{finding} is told {told}: a model can score without looking at the lungs.")
    return sentences


def _shortcut(
    finding: str, rule: str, splits: Sequence[str], areas: Sequence[float | None], cases: np.ndarray, purity: float
) -> Shortcut:
    """Return one shortcut; `areas` (S,) are its AUROCs, `cases` (S, 2) the patients without and with the finding."""
    judged = [
        place
        for place, (area, least) in enumerate(zip(areas, cases.min(axis=1), strict=True))
        if area is not None and least >= FEWEST_CASES
    ]
    return Shortcut(
        finding=finding,
        rule=rule,
        auroc=dict(zip(splits, areas, strict=True)),
        positives=dict(zip(splits, cases[:, 1].tolist(), strict=True)),
        negatives=dict(zip(splits, cases[:, 0].tolist(), strict=True)),
        judged_on=splits[judged[-1]] if judged else None,
        strength=areas[judged[-1]] if judged else None,
        purity=purity,
    )


def _cases(targets: np.ndarray, parts: np.ndarray, patients: np.ndarray, splits: int) -> np.ndarray:
    """Return (K, S, 2): in how many patients each finding is absent and present, by split."""
    most = int(patients.max(initial=0)) + 1
    owners = np.maximum(parts - 1, 0) * most + patients
    counts = np.zeros((targets.shape[1], splits, 2), np.int64)
    for column, value in itertools.product(range(targets.shape[1]), (0, 1)):
        images = np.bincount(owners[targets[:, column] == value], minlength=splits * most)
        counts[column, :, value] = (images.reshape(splits, most) > 0).sum(axis=1)
    return counts


def _areas(positives: np.ndarray, negatives: np.ndarray) -> list[float | None]:
    """Return the (S,) AUROCs from (P, C) counts, the halves of the first split before the other splits."""
    halves = [
        area
        for one, other in ((0, 1), (1, 0))
        if (area := _area(_rates(positives[other], negatives[other]), positives[one], negatives[one])) is not None
    ]
    rates = _rates(positives[:2].sum(axis=0), negatives[:2].sum(axis=0))
    return [
        sum(halves) / len(halves) if halves else None,
        *(_area(rates, *counts) for counts in zip(positives[2:], negatives[2:], strict=True)),
    ]


def _purity(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return `Shortcut.purity` from (C,) counts with both classes."""
    mostly = positives > negatives
    return float(min(positives[mostly].sum() / positives.sum(), negatives[~mostly].sum() / negatives.sum()))


def _rates(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Return the (C,) rate of a finding in each category; in one with few images, the overall rate."""
    known = positives + negatives
    overall = positives.sum() / max(known.sum(), 1)
    return np.where(known >= FEWEST_IN_CATEGORY, positives / np.maximum(known, 1), overall)


def _area(rates: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> float | None:
    """Return the AUROC of the (C,) `rates` as scores over images counted by category; None if a class is missing."""
    targets = np.repeat([1.0, 0.0], len(rates))
    area = auroc(targets, np.tile(rates, 2), np.concatenate([positives, negatives]))
    return None if math.isnan(area) else area


def _targets(index: pd.DataFrame, findings: Sequence[str], policy: LabelPolicy) -> np.ndarray:
    """Return (N, K) of 1, 0 and `MASKED`."""
    columns = {name: index[finding_column(name)].to_numpy(dtype=np.float32, na_value=np.nan) for name in findings}
    no_finding = columns.get(NO_FINDING, np.full(len(index), np.nan, np.float32))
    values = np.stack(list(columns.values()), axis=1) if columns else np.zeros((len(index), 0), np.float32)
    targets = apply_policy(values, findings, policy, no_finding=no_finding)
    return np.nan_to_num(targets, nan=MASKED).astype(np.int64)


def _rules(contents: Contents, fitted: np.ndarray) -> list[Rule]:
    """Return the rules; the edges of bins come from the (N,) `fitted` rows."""
    index = contents.index
    brightness = np.full(len(index), np.nan)
    for levels in contents.levels.values():
        brightness[levels.rows] = levels.mean
    return [
        Rule("origin", _joined(_words(index["origin"]))),
        Rule("projection", _joined(_words(index["projection"]))),
        Rule("file type", _joined(*(_words(index[name]) for name in ("kind", "transfer_syntax", "bits")))),
        Rule("sex", _joined(_words(index["sex"]))),
        Rule("age", _joined(_words(index["age"] // 10))),
        Rule("image size", _joined(*(_binned(index[name].to_numpy(float), fitted) for name in ("height", "width")))),
        Rule("mean brightness", _binned(brightness, fitted)),
    ]


def _words(column: pd.Series) -> np.ndarray:
    """Return the (N,) category of each value; a missing value is a category of its own."""
    return pd.factorize(column, use_na_sentinel=False)[0]


def _joined(*codes: np.ndarray) -> np.ndarray:
    """Return the (N,) category of each combination of categories."""
    joined = codes[0]
    for more in codes[1:]:
        joined = np.unique(joined * (int(more.max(initial=0)) + 1) + more, return_inverse=True)[1]
    return joined


def _binned(values: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Return the equally full bin of the `fitted` values that each value is in, as (N,) categories; -1 for NaN."""
    seen = values[fitted & ~np.isnan(values)]
    if not len(seen):
        return np.full(len(values), -1)
    bins = max(2, min(MOST_BINS, len(seen) // FEWEST_IN_BIN))
    edges = np.unique(np.quantile(seen, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.where(np.isnan(values), -1, np.searchsorted(edges, values, side="right"))
