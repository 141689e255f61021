"""What the numbers are, in a sentence each, for help texts and reports; no library is loaded for it."""

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
    "interval": "Were the study repeated with other patients, so many of such intervals would hold the true value.",
    "p": "How often so large a difference or a larger one would come up if the two were equally good.",
    "q": "p adjusted for how many differences are looked at: averages are one family per metric, findings another.",
    "DeLong p": "The same question as p, answered by a formula in place of redraws (AUROC only), as a check.",
    "permutation p": "The same question, answered by swapping the two models' scores within random patients.",
    "McNemar p": "Whether one model's calls are right more often than the other's.",
    "p non-inferior": "How often it would look so good if it were worse by the margin.",
    "p equivalent": "How often the two would look so alike if they were apart by the margin.",
    "gap to the rest": "The metric in a subgroup less that of all other images, worked out in the same redraws.",
    "±": "The standard deviation between training seeds; the interval is about other patients.",
}
"""Other numbers -> one sentence."""
