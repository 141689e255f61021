"""Statistics over saved predictions: AUROC, paired bootstrap of patients, tests, thresholds.

Shapes: N images, K findings, R redraws, P patients, S models.  Here numpy and scipy only; tables are read in
`predictions`, and `compare` puts everything together.
"""

from cxrdist.stats.auroc import auroc, macro
from cxrdist.stats.bootstrap import Redraws, bootstrap_auroc, redraw_counts
from cxrdist.stats.delong import DeLong, delong_test
from cxrdist.stats.families import benjamini_hochberg
from cxrdist.stats.inference import paired_test
from cxrdist.stats.intervals import Interval, percentile_interval
from cxrdist.stats.threshold import OperatingPoint, operating_point, roc_curve, youden_threshold

__all__ = [
    "DeLong",
    "Interval",
    "OperatingPoint",
    "Redraws",
    "auroc",
    "benjamini_hochberg",
    "bootstrap_auroc",
    "delong_test",
    "macro",
    "operating_point",
    "paired_test",
    "percentile_interval",
    "redraw_counts",
    "roc_curve",
    "youden_threshold",
]
