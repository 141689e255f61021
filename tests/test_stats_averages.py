import numpy as np
import pytest
from sklearn import metrics as sk

from cxrdist.stats.averages import average, micro_statistic, support_statistic
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.resample import Units, full_sample, whole_units

ALL = np.ones(4, dtype=bool)


def make_multilabel(rng, n=80, k=4):
    targets = (rng.random((n, k)) < [0.1, 0.3, 0.5, 0.7]).astype(float)
    targets[:2] = [[0.0] * k, [1.0] * k]
    return targets, np.clip(rng.integers(0, 11, (n, k)) / 10 * 0.7 + 0.3 * targets, 0, 1)


def values_of(name, targets, scores, thresholds=None):
    return np.array(
        [
            METRICS[name].value(targets[:, k], scores[:, k], threshold=None if thresholds is None else thresholds[k])
            for k in range(targets.shape[1])
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_averages_are_those_of_sklearn(seed):
    rng = np.random.default_rng(seed)
    targets, scores = make_multilabel(rng)
    units = Units(np.arange(80), 80)
    support = full_sample([support_statistic(targets[:, k], units) for k in range(4)], units)
    thresholds = np.array([0.3, 0.5, 0.6, 0.4])
    called = scores >= thresholds
    references = {
        "auroc": lambda kind: sk.roc_auc_score(targets, scores, average=kind),
        "auprc": lambda kind: sk.average_precision_score(targets, scores, average=kind),
        "f1": lambda kind: sk.f1_score(targets, called, average=kind),
        "sensitivity": lambda kind: sk.recall_score(targets, called, average=kind),
        "ppv": lambda kind: sk.precision_score(targets, called, average=kind, zero_division=np.nan),
    }
    for name, reference in references.items():
        values = values_of(name, targets, scores, thresholds)
        assert average(values, "macro", included=ALL) == pytest.approx(reference("macro"), abs=1e-12)
        assert average(values, "weighted", support, included=ALL) == pytest.approx(reference("weighted"), abs=1e-12)
        micro = micro_statistic(METRICS[name], targets, scores, units, thresholds)
        assert full_sample([micro], units)[0] == pytest.approx(reference("micro"), abs=1e-12)


def test_micro_pools_known_pairs_and_a_patient_brings_all_of_them():
    rng = np.random.default_rng(4)
    targets, scores = make_multilabel(rng)
    targets[rng.random(targets.shape) < 0.2] = np.nan
    scores[np.isnan(targets)] = np.nan
    units = whole_units(rng.integers(0, 30, 80))
    counts = units.draw(range(3), seed=0)
    known = ~np.isnan(targets)
    for name, metric in METRICS.items():
        micro = micro_statistic(metric, targets, scores, units, np.full(4, 0.5)).under(counts)
        for b in range(3):
            weights = np.repeat(counts[units.of_image, b][:, None], 4, axis=1)
            pooled = metric.value(targets[known], scores[known], weights[known], threshold=0.5)
            assert micro[b] == pytest.approx(pooled, rel=1e-11), name


def test_micro_needs_a_threshold_for_every_finding():
    targets, scores = make_multilabel(np.random.default_rng(0))
    units = Units(np.arange(80), 80)
    for thresholds in (None, np.full(3, 0.5)):
        with pytest.raises(ValueError, match=r"`thresholds` must be \(4,\) for f1"):
            micro_statistic(METRICS["f1"], targets, scores, units, thresholds)
    unknown = micro_statistic(METRICS["f1"], targets, scores, units, np.array([0.5, np.nan, 0.5, 0.5]))
    assert np.isnan(full_sample([unknown], units)[0])
    with pytest.raises(ValueError, match="must be numbers"):
        micro_statistic(METRICS["f1"], targets, np.full((80, 4), np.nan), units, np.full(4, 0.5))
    with pytest.raises(ValueError, match="one shape"):
        micro_statistic(METRICS["auroc"], targets, scores[:, :2], units)


def test_an_average_needs_every_included_finding():
    values = np.array([[0.5, np.nan, 1.0], [np.nan, 0.5, 0.5]])
    some = np.array([True, False, True])
    assert average(values, "macro", included=some) == pytest.approx([0.75, np.nan], nan_ok=True)
    support = np.array([[3.0, 1.0, 1.0], [2.0, 1.0, 1.0]])
    assert average(values, "weighted", support, included=some) == pytest.approx([0.625, np.nan], nan_ok=True)
    for kind in ("macro", "weighted"):
        assert np.isnan(average(values, kind, support, included=np.zeros(3, dtype=bool))).all()
    with pytest.raises(ValueError, match="`kind` must be 'macro', or 'weighted' with `support`"):
        average(values, "weighted", included=some)


def test_a_finding_without_positives_weighs_nothing():
    everything = np.ones(2, dtype=bool)
    assert average(np.array([0.8, np.nan]), "weighted", np.array([5, 0]), included=everything) == 0.8
    assert np.isnan(average(np.array([0.8, 0.9]), "weighted", np.zeros(2), included=everything))


def test_support_counts_positive_images_of_drawn_patients():
    targets = np.array([1.0, 0.0, np.nan, 1.0, 1.0])
    units = whole_units(np.array(["a", "a", "b", "b", "b"]))
    assert support_statistic(targets, units).under(np.array([[1, 3], [1, 0]], dtype=np.uint16)).tolist() == [3, 3]
