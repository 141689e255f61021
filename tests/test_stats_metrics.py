"""Every metric of the registry under counts: what holds for all of them."""

import pickle

import numpy as np
import pytest
from sklearn import metrics as sk

from cxrdist.stats.metrics import METRICS
from cxrdist.stats.resample import Units, full_sample, jackknife, redraw, whole_units

THRESHOLD = 0.4

SKLEARN = {
    "auroc": lambda y, p, c, w: sk.roc_auc_score(y, p, sample_weight=w),
    "auprc": lambda y, p, c, w: sk.average_precision_score(y, p, sample_weight=w),
    "sensitivity": lambda y, p, c, w: sk.recall_score(y, c, sample_weight=w, zero_division=np.nan),
    "specificity": lambda y, p, c, w: sk.recall_score(y, c, pos_label=0, sample_weight=w, zero_division=np.nan),
    "ppv": lambda y, p, c, w: sk.precision_score(y, c, sample_weight=w, zero_division=np.nan),
    "npv": lambda y, p, c, w: sk.precision_score(y, c, pos_label=0, sample_weight=w, zero_division=np.nan),
    "f1": lambda y, p, c, w: sk.f1_score(y, c, sample_weight=w, zero_division=np.nan),
    "accuracy": lambda y, p, c, w: sk.accuracy_score(y, c, sample_weight=w),
    "balanced_accuracy": lambda y, p, c, w: sk.balanced_accuracy_score(y, c, sample_weight=w),
    "mcc": lambda y, p, c, w: sk.matthews_corrcoef(y, c, sample_weight=w),
    "brier": lambda y, p, c, w: sk.brier_score_loss(y, p, sample_weight=w),
    "log_loss": lambda y, p, c, w: sk.log_loss(y, p, sample_weight=w),
}


def make_sample(rng, n=60, kind="ties"):
    """Return targets with every eighth masked, and probabilities of the kind; both classes are among the labels."""
    targets = (rng.random(n) < 0.35).astype(float)
    targets[:2] = 0, 1
    scores = {
        "ties": rng.integers(0, 6, n) / 5,  # 0 and 1 among them
        "constant": np.full(n, 0.5),
        "certain": rng.integers(0, 2, n).astype(float),
        "certain and right": targets.copy(),
        "spread": np.clip(rng.random(n) * 0.7 + 0.3 * targets, 0, 1),
        "one positive": rng.integers(0, 6, n) / 5,
    }[kind]
    if kind == "one positive":
        targets[2:] = 0
    targets[7::8] = np.nan
    return targets, scores


KINDS = ("ties", "constant", "certain", "certain and right", "spread", "one positive")


@pytest.mark.parametrize("weighing", ["none", "integers with zeros", "floats"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_sklearn(kind, weighing):
    rng = np.random.default_rng(11)
    targets, scores = make_sample(rng, kind=kind)
    weights = {"none": None, "integers with zeros": rng.integers(0, 4, 60), "floats": rng.random(60)}[weighing]
    if weights is not None:
        weights[:2] = 1  # both classes keep a weight
    known = ~np.isnan(targets)
    y, p, w = targets[known], scores[known], None if weights is None else weights[known]
    scores = np.where(known, scores, np.nan)  # nobody looks at a masked score
    for name, reference in SKLEARN.items():
        metric = METRICS[name]
        expected = reference(y, p, p >= THRESHOLD, w)
        if name == "mcc" and len(np.unique(p >= THRESHOLD)) == 1:
            assert expected == 0  # where we say that there is no correlation
            expected = np.nan
        got = metric.value(targets, scores, weights, threshold=THRESHOLD)
        assert got == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True), (name, kind, weighing)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("kind", ["ties", "spread"])
def test_an_integer_weight_is_a_repeated_image(name, kind):
    metric = METRICS[name]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        targets, scores = make_sample(rng, kind=kind)
        weights = rng.integers(0, 4, 60)
        repeated = np.repeat(np.arange(60), weights)
        expected = metric.value(targets[repeated], scores[repeated], threshold=THRESHOLD)
        assert not np.isnan(expected)
        for same in (weights, weights.astype(float)):
            assert metric.value(targets, scores, same, threshold=THRESHOLD) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_images_and_masked_images_change_nothing(name):
    metric, rng = METRICS[name], np.random.default_rng(5)
    targets, scores = make_sample(rng, kind="ties")
    expected = metric.value(targets, scores, threshold=THRESHOLD)
    known = ~np.isnan(targets)
    assert metric.value(targets[known], scores[known], threshold=THRESHOLD) == pytest.approx(expected, rel=1e-13)
    for _ in range(5):
        order = rng.permutation(60)
        assert metric.value(targets[order], scores[order], threshold=THRESHOLD) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.uint16, np.float64])
@pytest.mark.parametrize("name", METRICS)
def test_a_column_of_counts_gives_the_same_bits_beside_any_others(name, dtype):
    rng = np.random.default_rng(6)
    targets, scores = make_sample(rng, kind="spread")
    units = whole_units(rng.integers(0, 25, 60))
    statistic = METRICS[name].prepare(targets, scores, units, THRESHOLD)
    counts = units.draw(range(11), seed=3) if dtype == np.uint16 else rng.random((units.n, 11))
    together = statistic.under(counts)
    assert together.shape == (11,)
    assert together.dtype == np.float64
    assert np.isfinite(together).all()
    alone = [statistic.under(np.ascontiguousarray(counts[:, [b]]))[0] for b in range(11)]
    assert together.tobytes() == np.array(alone).tobytes()
    columns = rng.permutation(11)[:7]
    assert statistic.under(counts[:, columns]).tobytes() == together[columns].tobytes()
    assert pickle.loads(pickle.dumps(statistic)).under(counts).tobytes() == together.tobytes()


def test_patients_bring_all_their_images_and_no_grouping_of_redraws_is_seen():
    rng = np.random.default_rng(7)
    targets, scores = make_sample(rng, kind="ties")
    units = whole_units(rng.integers(0, 20, 60))
    statistics = [metric.prepare(targets, scores, units, THRESHOLD) for metric in METRICS.values()]
    theta = redraw(statistics, units, n_resamples=9, seed=1, together=9)
    assert redraw(statistics, units, n_resamples=9, seed=1, together=2).tobytes() == theta.tobytes()
    counts = units.draw(range(9), seed=1)
    for column, metric in enumerate(METRICS.values()):
        for b in (0, 8):
            weights = counts[units.of_image, b]
            value = metric.value(targets, scores, weights, threshold=THRESHOLD)
            assert value == pytest.approx(theta[b, column], rel=1e-11, nan_ok=True), metric.name
    left_out = jackknife(statistics, units)
    for column, metric in enumerate(METRICS.values()):
        kept = units.of_image != 4
        value = metric.value(targets[kept], scores[kept], threshold=THRESHOLD)
        assert left_out[4, column] == pytest.approx(value, rel=1e-11, nan_ok=True), metric.name


@pytest.mark.parametrize("name", METRICS)
def test_without_a_labelled_image_of_weight_nothing_is_defined(name):
    metric, scores = METRICS[name], np.array([0.2, 0.6, 0.9])
    assert np.isnan(metric.value(np.full(3, np.nan), scores, threshold=THRESHOLD))
    assert np.isnan(metric.value(np.array([0.0, 1.0, 1.0]), scores, np.zeros(3), threshold=THRESHOLD))
    assert np.isnan(metric.value(np.empty(0), np.empty(0), threshold=THRESHOLD))


@pytest.mark.parametrize(
    ("targets", "undefined"),
    [
        ([0, 0, 0], {"auroc", "auprc", "sensitivity", "balanced_accuracy", "mcc"}),
        ([1, 1, 1], {"auroc", "specificity", "balanced_accuracy", "mcc"}),
    ],
)
def test_one_class_leaves_undefined_what_needs_both(targets, undefined):
    scores = np.array([0.1, 0.5, 0.9])
    values = {
        name: one.value(np.array(targets, dtype=float), scores, threshold=THRESHOLD) for name, one in METRICS.items()
    }
    both = {"calibration_slope", "calibration_intercept"}
    assert {name for name, value in values.items() if np.isnan(value)} == undefined | both


def test_wrong_values_are_refused_by_every_metric():
    targets, scores = np.array([0.0, 1.0, 1.0]), np.array([0.1, 0.2, 0.3])
    units = Units(np.arange(3), 3)
    for metric in METRICS.values():
        for wrong in (
            (np.array([0.0, 1.0, -1.0]), scores),
            (targets, np.array([0.1, np.nan, 0.3])),
            (targets, scores[:2]),
        ):
            with pytest.raises(ValueError, match=r"must be|must have"):
                metric.prepare(*wrong, units, THRESHOLD)
        with pytest.raises(ValueError, match="must be 0 or more"):
            metric.value(targets, scores, np.array([1, -1, 1]), threshold=THRESHOLD)
        with pytest.raises(ValueError, match="must"):
            metric.prepare(targets, scores, units, THRESHOLD).under(np.ones((2, 1)))
        if metric.needs_threshold:
            with pytest.raises(ValueError, match="`threshold` must be given"):
                metric.value(targets, scores)


def test_metrics_say_what_they_are():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.meaning.endswith(".")
        assert (metric.target is not None) == (metric.better == "target")


@pytest.mark.parametrize("stretch", [1.0, 1.5])
def test_interval_of_the_calibration_error_holds_the_value_and_the_truth(stretch):
    """Redraws raise the error: percentile intervals of calibrated probabilities mostly lie above it."""
    studies, n, metric = 40, 600, METRICS["ece"]
    units = Units(np.arange(n), n)
    value_held = truth_held = above = 0
    for study in range(studies):
        rng = np.random.default_rng([17, study])
        logit = rng.normal(-1.5, 1.2, n)
        chance, told = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-stretch * logit))
        statistic = metric.prepare((rng.random(n) < chance).astype(float), told, units, None)
        value = full_sample([statistic], units)[0]
        theta = redraw([statistic], units, n_resamples=200, seed=study)[:, 0]
        bounds = metric.interval(theta, point=value)
        value_held += bounds.low <= value <= bounds.high
        truth_held += bounds.low <= np.abs(chance - told).mean() <= bounds.high
        above += np.quantile(theta, 0.025) > value
    assert value_held == studies
    assert truth_held >= 0.85 * studies
    assert above > 5 or stretch > 1


def test_intervals_stay_within_what_the_metric_can_be():
    theta = np.linspace(0.8, 1.2, 101)
    assert METRICS["auroc"].interval(theta, point=0.9).high == 1.0
    assert METRICS["auroc"].interval(theta - 1, point=0.1).low == 0.0
    assert METRICS["mcc"].interval(theta - 1, point=0.1).low == pytest.approx(-0.19)
    assert METRICS["calibration_slope"].interval(theta, point=0.9).high == pytest.approx(1.19)
    assert np.isnan(METRICS["auroc"].interval(np.full(3, np.nan), point=np.nan).low)
