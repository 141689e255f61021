"""How small a difference between two models a test sample can show, before anything is trained.

The variance of an AUROC is that of Hanley & McNeil (1982, Radiology 143:29, equation 1), that of a paired difference
follows from the correlation between the two AUROCs (Hanley & McNeil 1983, Radiology 148:839), and several images of a
patient enlarge it by a design effect, as Obuchowski's clustered variance does (1997, Biometrics 53:567).  The test is
two-sided and uses the variance at the two AUROCs meant, as `compare` does.

Equation 1 holds for scores of any distribution, but two chances in it depend on that.  ``binormal``: scores of both
classes are normal with one variance, as logits roughly are.  ``exponential`` is what Hanley & McNeil took: scores vary
more with the finding than without, which asks for up to about twice as many patients where the finding is rare.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, owens_t

from cxrdist.errors import UsageError, unknown

Scores = Literal["binormal", "exponential"]
MOST_PATIENTS = 10**9
FEW = 10
"""Below so many patients with, or without, the finding a normal approximation is not to be trusted."""


@dataclass(frozen=True)
class Power:
    """A test sample and the difference in AUROC it shows; images are expected numbers, so they need not be whole."""

    difference: float
    """AUROC of the better model minus `auc`."""
    auc: float
    """AUROC of the other model."""
    prevalence: float
    n_patients: int
    images_per_patient: float
    correlation: float
    within_patient: float
    alpha: float
    power: float
    scores: Scores
    standard_error: float = math.nan
    """Of the difference."""

    @property
    def n_images(self) -> float:
        """All images."""
        return self.n_patients * self.images_per_patient

    @property
    def n_positive(self) -> float:
        """Images with the finding."""
        return self.n_images * self.prevalence

    @property
    def design_effect(self) -> float:
        """How many times larger the variance is than with as many images of different patients."""
        return 1 + (self.images_per_patient - 1) * self.within_patient

    def sentence(self) -> str:
        """Return what an application for a grant has to say of the size of its sample."""
        images = f"{self.n_images:,.0f} images, {self.n_positive:,.0f} of them with the finding"
        text = (
            f"A test sample of {self.n_patients:,} patients ({images}) detects a difference in AUROC of "
            f"{self.difference:.4f} ({self.auc:.4f} against {self.auc + self.difference:.4f}) with a power of "
            f"{100 * self.power:g} % in a paired two-sided test at the level {self.alpha:g}, if the correlation "
            f"between the two models' AUROCs is {self.correlation:g}"
        )
        if self.images_per_patient > 1:
            text += (
                f" and that between images of a patient is {self.within_patient:g} "
                f"(design effect {self.design_effect:.2f})"
            )
        return f"{text} ({self.scores} scores; Hanley & McNeil 1982, 1983; Obuchowski 1997)."

    def notes(self) -> list[str]:
        """Return what weakens the statement, a sentence each."""
        fewest = self.n_patients * min(self.prevalence, 1 - self.prevalence)
        if fewest >= FEW:
            return []
        which = "with" if self.prevalence <= 0.5 else "without"
        return [
            f"About {fewest:.1f} patients {which} the finding are few: below {FEW} the approximation by a normal "
            "distribution is not to be trusted."
        ]

    def tree(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""
        derived = {"n_images": self.n_images, "n_positive": self.n_positive, "design_effect": self.design_effect}
        return asdict(self) | derived | {"sentence": self.sentence(), "notes": self.notes()}


def smallest_detectable_difference(
    *,
    auc: float,
    prevalence: float,
    n_patients: int,
    images_per_patient: float = 1,
    correlation: float = 0.5,
    within_patient: float = 0.0,
    alpha: float = 0.05,
    power: float = 0.8,
    scores: Scores = "binormal",
) -> Power:
    """Return the smallest paired difference in AUROC that a test of this sample finds with probability `power`.

    By the variances of Hanley & McNeil 1982, 1983, see above.

    Args:
        auc: AUROC of the weaker model, in [0.5, 1).
        prevalence: Share of images with the finding, in (0, 1).
        n_patients: Patients in the test sample.
        images_per_patient: On average, 1 or more.
        correlation: Between the AUROCs of the two models over test samples, in [0, 1); the tables of Hanley & McNeil
            (1983) give it from the correlation of the two models' scores.
        within_patient: Correlation, in [0, 1], between images of a patient in how much better one model ranks them
            than the other.  The design effect is 1 + (`images_per_patient` - 1) `within_patient`, which holds where all
            images of a patient have one label and is too large, so on the safe side, where they have both.
        alpha: Level of the two-sided test; for one of K comparisons, that of one (Bonferroni: 0.05 / K).
        power: In (alpha, 1).
        scores: How scores are distributed, see above.

    Raises:
        UsageError: If a value is outside its range, or no difference up to an AUROC of 1 can be detected.
    """
    given = (images_per_patient, correlation, within_patient, alpha, power, scores)
    plan = Power(math.nan, auc, prevalence, n_patients, *given)
    _check(plan)
    if isinstance(n_patients, bool) or not 2 <= n_patients <= MOST_PATIENTS or n_patients % 1:
        raise UsageError(f"`n_patients` must be a whole number from 2 to {MOST_PATIENTS:,}, got {n_patients}.")
    if min(plan.n_positive, plan.n_images - plan.n_positive) < 1:
        raise UsageError(
            f"A test sample must hold an image with and one without the finding, got {plan.n_positive:.2g} with it "
            f"among {plan.n_images:g}. Plan for more patients."
        )

    def surplus(difference: float) -> float:
        return difference - _quantiles(alpha, power) * _standard_error(plan, difference)

    # The standard error may rise again towards an AUROC of 1, so the first crossing is looked for, not any.
    ladder = np.linspace(0, 1 - auc, 501)
    enough = [step for step in range(1, len(ladder)) if surplus(float(ladder[step])) >= 0]
    if not enough:
        raise UsageError(
            f"A difference up to an AUROC of 1 must be detectable, got none above {auc:g} with {n_patients} patients "
            f"and {plan.n_positive:.3g} images with the finding. Plan for more patients."
        )
    difference = float(brentq(surplus, ladder[enough[0] - 1], ladder[enough[0]], xtol=1e-14))
    return _filled(plan, difference, int(n_patients))


def patients_needed(
    *,
    difference: float,
    auc: float,
    prevalence: float,
    images_per_patient: float = 1,
    correlation: float = 0.5,
    within_patient: float = 0.0,
    alpha: float = 0.05,
    power: float = 0.8,
    scores: Scores = "binormal",
) -> Power:
    """Return the smallest test sample that shows a paired `difference` in AUROC with probability `power`.

    Arguments and sources are those of `smallest_detectable_difference`, and `difference` in (0, 1 - `auc`].

    Raises:
        UsageError: If a value is outside its range, or a thousand million patients are not enough.
    """
    given = (images_per_patient, correlation, within_patient, alpha, power, scores)
    plan = Power(difference, auc, prevalence, 0, *given)
    _check(plan)
    if not 0 < difference <= 1 - auc:
        raise UsageError(f"`difference` must be in (0, {1 - auc:g}], what is left above `auc`, got {difference:g}.")
    wanted = difference / _quantiles(alpha, power)

    def enough(n_patients: int) -> bool:
        one = _filled(plan, difference, n_patients)
        return min(one.n_positive, one.n_images - one.n_positive) >= 1 and one.standard_error <= wanted

    most = 2
    while not enough(most):
        if most > MOST_PATIENTS:
            raise UsageError(
                f"`difference` must be detectable with {MOST_PATIENTS:,} patients, got {difference:g}. "
                "Ask for a larger one."
            )
        most *= 2
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return _filled(plan, difference, most)


def auroc_variance(auc: float, n_positive: float, n_negative: float, scores: Scores = "binormal") -> float:
    """Return the variance of an AUROC in (0, 1) of so many independent images (Hanley & McNeil 1982, equation 1).

    For ``binormal`` scores both chances are that of two normal numbers with correlation 1/2 below one bound, for which
    Owen (1956, Annals of Mathematical Statistics 27:1075) has a closed form.
    """
    if scores == "binormal":
        bound = ndtri(auc)
        two_positives = two_negatives = auc - 2 * owens_t(bound, 1 / math.sqrt(3))
    else:
        two_positives = auc / (2 - auc)  # Q1: two positives both above one negative
        two_negatives = 2 * auc**2 / (1 + auc)  # Q2: one positive above two negatives
    among_positives = (n_positive - 1) * (two_positives - auc**2)
    among_negatives = (n_negative - 1) * (two_negatives - auc**2)
    return float((auc * (1 - auc) + among_positives + among_negatives) / (n_positive * n_negative))


def _filled(plan: Power, difference: float, n_patients: int) -> Power:
    sized = replace(plan, difference=difference, n_patients=n_patients)
    return replace(sized, standard_error=_standard_error(sized, difference))


def _standard_error(plan: Power, difference: float) -> float:
    n_negative = plan.n_images - plan.n_positive
    weaker = auroc_variance(plan.auc, plan.n_positive, n_negative, plan.scores)
    stronger = auroc_variance(min(plan.auc + difference, 1.0), plan.n_positive, n_negative, plan.scores)
    variance = weaker + stronger - 2 * plan.correlation * math.sqrt(weaker * max(stronger, 0.0))
    return math.sqrt(max(variance, 0.0) * plan.design_effect)


def _quantiles(alpha: float, power: float) -> float:
    return float(ndtri(1 - alpha / 2) + ndtri(power))


def _check(plan: Power) -> None:
    rules = {
        "auc": (0.5 <= plan.auc < 1, "in [0.5, 1)"),
        "prevalence": (0 < plan.prevalence < 1, "in (0, 1)"),
        "images_per_patient": (1 <= plan.images_per_patient <= 1e6, "1 or more and at most a million"),
        "correlation": (0 <= plan.correlation < 1, "in [0, 1)"),
        "within_patient": (0 <= plan.within_patient <= 1, "in [0, 1]"),
        "alpha": (0 < plan.alpha < 1, "in (0, 1)"),
        "power": (plan.alpha < plan.power < 1, "above `alpha` and below 1"),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise UsageError(f"`{name}` must be {rule}, got {getattr(plan, name):g}.")
    if plan.scores not in get_args(Scores):
        raise UsageError(unknown("`scores`", plan.scores, get_args(Scores)))
