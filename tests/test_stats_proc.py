"""DeLong's test against R's pROC (Robin et al. 2011, BMC Bioinformatics 12:77) on its own example data."""

import csv
import io
import shutil
import subprocess
from itertools import combinations

import numpy as np
import pytest

from cxrdist.stats.auroc import auroc
from cxrdist.stats.delong import delong_test

pytestmark = pytest.mark.slow

MARKERS = ("wfns", "s100b", "ndka")
# Digits enough that nothing is lost; first the data of 113 patients, then what pROC makes of them.
IN_R = """
if (!requireNamespace("pROC", quietly = TRUE)) quit(status = 77)
suppressMessages(library(pROC))
data(aSAH)
row <- function(...) cat(paste(c(...), collapse = ","), "\\n", sep = "")
digits <- function(x) formatC(as.numeric(x), digits = 17, format = "g")
for (i in seq_len(nrow(aSAH)))
  row("data", as.integer(aSAH$outcome[i] == "Poor"), digits(aSAH$wfns[i]), digits(aSAH$s100b[i]), digits(aSAH$ndka[i]))
markers <- c("wfns", "s100b", "ndka")
curves <- lapply(markers, function(marker)
  roc(aSAH$outcome, as.numeric(aSAH[[marker]]), levels = c("Good", "Poor"), direction = "<"))
for (i in 1:3) row("one", markers[i], digits(auc(curves[[i]])), digits(var(curves[[i]], method = "delong")))
for (i in 1:2) for (j in (i + 1):3) {
  test <- roc.test(curves[[i]], curves[[j]], method = "delong", paired = TRUE)
  row("pair", markers[i], markers[j], digits(test$p.value), digits(test$statistic),
      digits(cov(curves[[i]], curves[[j]], method = "delong")))
}
"""


@pytest.fixture(scope="module")
def proc():
    """Return the rows of R by their kind, or skip."""
    rscript = shutil.which("Rscript")
    if rscript is None:
        pytest.skip("Rscript is not installed; on Debian it comes with `apt-get install r-cran-proc`.")
    done = subprocess.run([rscript, "--vanilla", "-e", IN_R], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 77:
        pytest.skip("R has no package pROC; on Debian `apt-get install r-cran-proc` brings it.")
    assert done.returncode == 0, done.stderr
    rows = {"data": [], "one": [], "pair": []}
    for kind, *values in csv.reader(io.StringIO(done.stdout)):
        rows[kind].append(values)
    return rows


@pytest.fixture(scope="module")
def sample(proc):
    """Return the targets and the scores of each marker."""
    table = np.array(proc["data"], dtype=np.float64)
    assert table.shape == (113, 4)
    return table[:, 0], dict(zip(MARKERS, table[:, 1:].T, strict=True))


def test_aurocs_and_their_variances_are_those_of_proc(proc, sample):
    targets, scores = sample
    assert [name for name, *_ in proc["one"]] == list(MARKERS)
    for name, area, variance in proc["one"]:
        assert auroc(targets, scores[name]) == pytest.approx(float(area), abs=1e-12)
        error = delong_test(targets, scores[name], np.zeros(len(targets))).standard_error
        assert error**2 == pytest.approx(float(variance), abs=1e-12)


def test_tests_of_all_pairs_are_those_of_proc(proc, sample):
    targets, scores = sample
    assert [(first, second) for first, second, *_ in proc["pair"]] == list(combinations(MARKERS, 2))
    variance = {name: float(value) for name, _, value in proc["one"]}
    for first, second, p, z, covariance in proc["pair"]:
        result = delong_test(targets, scores[first], scores[second])
        print(first, second, result, p)
        assert result.p == pytest.approx(float(p), abs=1e-12)
        assert result.difference / result.standard_error == pytest.approx(float(z), abs=1e-9)
        expected = variance[first] + variance[second] - 2 * float(covariance)
        assert result.standard_error**2 == pytest.approx(expected, abs=1e-12)
