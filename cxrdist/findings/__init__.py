"""Findings: their names, their four values, and the policy that maps the four to what a loss can use.

Shapes: N images, K findings.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from cxrdist.config import Config
from cxrdist.errors import UsageError, unknown

PRESENT, ABSENT, UNCERTAIN = 1, 0, -1
"""Values of a finding; the fourth, not mentioned, is null in files and NaN in float arrays."""

NO_FINDING = "no_finding"


@cache
def titles() -> dict[str, str]:
    """Return ``{name: title}`` of every canonical finding, in the order reports use."""
    tree = yaml.safe_load((Path(__file__).parent / "findings.yaml").read_text(encoding="utf-8"))
    return {name: facts["title"] for name, facts in tree.items()}


def check_names(names: Sequence[str]) -> None:
    """Raise `UsageError` naming every entry of `names` that is not a canonical finding, and its nearest."""
    known = titles()
    wrong = [unknown("A finding", name, known) for name in names if name not in known]
    if wrong:
        raise UsageError("\n".join(wrong))


class LabelPolicy(Config):
    """How uncertain and not-mentioned values become targets.  Masked targets take no part in a loss or a metric."""

    uncertain: Literal["ignore", "zeros", "ones"] = "ignore"
    """-1 becomes masked, 0 or 1 (U-Ignore, U-Zeros, U-Ones of Irvin et al. 2019)."""

    uncertain_by_finding: dict[str, Literal["ignore", "zeros", "ones"]] = {}
    """Exceptions from `uncertain`, for example ``{atelectasis: ones}``."""

    not_mentioned: Literal["ignore", "zeros", "zeros_if_no_finding"] = "zeros"
    """Null becomes masked, 0, or 0 only in images whose `no_finding` is 1."""

    soft: bool = False
    """Train towards the share of readers who say present, where the shards have it; elsewhere towards the value above.
    Validation, test and class weights go by the values always: a metric needs a yes or a no."""


def apply_policy(
    values: np.ndarray, names: Sequence[str], policy: LabelPolicy, *, no_finding: np.ndarray
) -> np.ndarray:
    """Return targets of shape (N, K), float32: 0, 1, or NaN where masked.

    Args:
        values: (N, K) of 1, 0, -1, or NaN for not mentioned.
        names: The K finding names.
        policy: What becomes of -1 and NaN.
        no_finding: (N,) value of `no_finding`, NaN where unknown; read by ``zeros_if_no_finding``.
    """
    targets = values.astype(np.float32, copy=True)
    replacement = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}
    for column, name in enumerate(names):
        uncertain = values[:, column] == UNCERTAIN
        targets[uncertain, column] = replacement[policy.uncertain_by_finding.get(name, policy.uncertain)]
        missing = np.isnan(values[:, column])
        if policy.not_mentioned == "zeros":
            targets[missing, column] = 0.0
        elif policy.not_mentioned == "zeros_if_no_finding":
            targets[missing & (no_finding == PRESENT), column] = 0.0
    return targets
