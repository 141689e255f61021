"""What the numbers are, in a sentence each, for help texts and reports; no library is loaded for it."""

from decimal import Context, Decimal

MACRO, MICRO, WEIGHTED = "macro", "micro", "weighted"
AVERAGES = (MACRO, MICRO, WEIGHTED)
"""Names of averages over findings, where a finding's name would stand; no finding may be named so."""

MEANINGS = {
    "auroc": (
        "AUROC",
        "The chance that an image with the finding scores higher than one without it; 0.5 is guessing, 1 is perfect.",
    ),
    "auprc": (
        "AUPRC",
        "Average precision: how right the calls are, averaged over all findings detected as the threshold falls; "
        "guessing gives the prevalence.",
    ),
    "sensitivity": (
        "Sensitivity",
        "The share of images with the finding that are called.",
    ),
    "specificity": (
        "Specificity",
        "The share of images without the finding that are not called.",
    ),
    "ppv": (
        "PPV",
        "The share of calls that are right, at the prevalence of this sample.",
    ),
    "npv": (
        "NPV",
        "The share of images not called that are free of the finding, at this sample's prevalence.",
    ),
    "f1": (
        "F1",
        "The harmonic mean of sensitivity and PPV; images rightly not called do not count.",
    ),
    "accuracy": (
        "Accuracy",
        "The share of images called rightly; for a rare finding, never calling does well.",
    ),
    "balanced_accuracy": (
        "Balanced accuracy",
        "The mean of sensitivity and specificity; 0.5 is guessing, 1 perfect.",
    ),
    "mcc": (
        "MCC",
        "The correlation between calls and truth (Matthews): 1 is perfect, 0 guessing, -1 always wrong.",
    ),
    "brier": (
        "Brier score",
        "The mean squared distance of the probability from what was true (1 or 0); 0 is perfect.",
    ),
    "log_loss": (
        "Log loss",
        "The mean surprise at what was true, given the probability; being sure and wrong costs most, 0 is perfect.",
    ),
    "ece": (
        "ECE",
        "The mean gap between predicted probability and observed share, over 15 groups of images of like probability; "
        "chance alone keeps it above 0.",
    ),
    "calibration_slope": (
        "Calibration slope",
        "Whether probabilities are too extreme (below 1) or too timid (above 1); 1 is right.",
    ),
    "calibration_intercept": (
        "Calibration intercept",
        "Whether probabilities are too high on the whole (below 0) or too low (above 0); 0 is right.",
    ),
}
"""Metric -> its title and one sentence for a clinician, in the order of tables."""

STATEMENTS = {
    "interval": (
        "Were the study repeated with other patients, and with other training seeds where those are redrawn too, so "
        "many of such intervals would hold the true value."
    ),
    "p": (
        "About twice the share of redraws in which the difference vanishes or turns round, so it is small where the "
        "percentile interval leaves out 0."
    ),
    "q": "p adjusted for how many differences are looked at: averages are one family per metric, findings another.",
    "DeLong p": (
        "How often chance alone would set two equally good models so far apart, by a formula in place of redraws "
        "(AUROC only), as a check."
    ),
    "permutation p": (
        "How often chance alone would set two like models so far apart, by swapping their scores within random "
        "patients."
    ),
    "McNemar p": "Whether one model's calls are right more often than the other's.",
    "p non-inferior": "The share of redraws in which the model is worse by the margin or more.",
    "p equivalent": (
        "The share of redraws in which the two are apart by the margin or more, in the direction where it is larger."
    ),
    "gap to the rest": "The metric in a subgroup less that of all other images, worked out in the same redraws.",
    "±": (
        "The standard deviation between training seeds; the interval holds for other patients, and for other seeds "
        "only where those are redrawn too."
    ),
}
"""Other numbers -> one sentence."""

DIGITS = 6


def confidence(alpha: float) -> str:
    """Return the confidence level 1 - `alpha` in percent, never rounded to 100 or to 0: ``"95 %"``.

    `alpha`, in (0, 1), or the level where that is the smaller one, keeps six significant digits.
    """
    hundred, share = Decimal(100), 100 * Decimal(repr(float(alpha)))
    digits = Context(prec=DIGITS)
    if share <= 50:
        share = digits.plus(share)
        # As many digits as the difference has.
        exact = Context(prec=max(1, 3 - int(share.as_tuple().exponent)))
        level = exact.subtract(hundred, share)
    else:
        level = digits.plus(hundred - share)
    text = f"{level:f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"
