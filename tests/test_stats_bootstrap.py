from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cxrdist.stats.bootstrap import Redraws, Sample, bootstrap, rare_strata
from cxrdist.stats.inference import paired_test
from cxrdist.stats.intervals import percentile_interval
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.resample import Units, redraw, whole_units


def make_study(seed, *, patients=40, findings=3, prevalence=0.3, per_patient=4):
    """Return targets (N, K), clusters (N,) and two models' scores, ties and masked targets included."""
    print(f"study of seed {seed}")
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(patients), rng.integers(1, per_patient + 1, patients))
    frailty = rng.normal(size=(patients, findings))[clusters]
    targets = (frailty + rng.normal(size=frailty.shape) > norm.ppf(1 - prevalence) * np.sqrt(2)).astype(float)
    scores = {
        name: np.round(1 / (1 + np.exp(-targets * effect - rng.normal(size=targets.shape))), 2)
        for name, effect in (("ours", 1.0), ("theirs", 0.5))
    }
    targets[rng.random(targets.shape) < 0.05] = np.nan
    names = np.array([f"patient-{rng.integers(1e9):09d}" for _ in range(patients)])
    order = rng.permutation(len(targets))
    return targets[order], {name: values[order] for name, values in scores.items()}, names[clusters][order]


def redraws_of(targets, scores, clusters, **settings) -> Redraws:
    """Return the redraws of findings named 0, 1, 2 ..., with a mean over them."""
    findings = tuple(str(k) for k in range(targets.shape[1]))
    return bootstrap(Sample(findings, targets, whole_units(clusters)), scores, **settings)


def theta(redraws: Redraws, model: str, metric: str = "auroc") -> np.ndarray:
    """Return (R, K + 1): findings in order, then the mean."""
    return np.stack([v for (name, what, _), v in redraws.theta.items() if (name, what) == (model, metric)], axis=1)


def counts_of(patients: int, redraw: int, seed: int) -> np.ndarray:
    return Units(np.arange(patients), patients).draw([redraw], seed)[:, 0]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_redraw_is_that_of_a_plain_sklearn_loop_over_drawn_patients(seed):
    targets, scores, clusters = make_study(seed, prevalence=0.12)
    n_resamples = 60
    redraws = redraws_of(targets, scores, clusters, n_resamples=n_resamples, seed=seed)
    patients = sorted(set(clusters))
    for r in range(n_resamples):
        # The documented stream, written out without cxrdist: entropy words (seed, 6 = BOOTSTRAP, redraw).
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 6, r])))
        drawn = rng.integers(0, len(patients), len(patients))
        rows = np.concatenate([np.flatnonzero(clusters == patients[p]) for p in drawn])
        for name, values in scores.items():
            expected = []
            for k in range(targets.shape[1]):
                known = rows[~np.isnan(targets[rows, k])]
                one_class = len(set(targets[known, k])) < 2
                expected.append(np.nan if one_class else roc_auc_score(targets[known, k], values[known, k]))
            expected.append(np.mean(expected))
            np.testing.assert_allclose(theta(redraws, name)[r], expected, rtol=0, atol=1e-12)


def test_redraws_in_which_a_finding_lost_a_class_are_counted_and_left_out():
    targets, scores, clusters = make_study(4)
    targets[:, 0] = 0
    targets[clusters == clusters[0], 0] = 1
    redraws = redraws_of(targets, scores, clusters, n_resamples=200, seed=0)
    lost = sum(counts_of(40, r, 0)[sorted(set(clusters)).index(clusters[0])] == 0 for r in range(200))
    assert 40 < lost < 110
    values = theta(redraws, "ours")
    assert np.isnan(values).sum(axis=0).tolist() == [lost, 0, 0, lost]
    np.testing.assert_allclose(values[:, -1], np.mean(values[:, :-1], axis=1))
    assert np.isfinite(percentile_interval(values[:, 0]).low)


def test_finding_with_one_class_is_out_of_the_macro_mean():
    targets, scores, clusters = make_study(5)
    targets[:, 1] = 0
    redraws = redraws_of(targets, scores, clusters, n_resamples=10, seed=0)
    point = [redraws.point["ours", "auroc", name] for name in ("0", "1", "2", MACRO)]
    assert np.isnan(point[1])
    assert point[3] == pytest.approx((point[0] + point[2]) / 2)
    assert np.isnan(theta(redraws, "ours")).sum(axis=0).tolist() == [0, 10, 0, 0]


def run_backwards(function, items):
    """A map that works in another order than it yields."""
    items = list(items)
    return list(reversed([function(item) for item in reversed(items)]))


def test_the_map_does_not_change_a_bit():
    targets, scores, clusters = make_study(6)
    plain = redraws_of(targets, scores, clusters, n_resamples=75, seed=3)
    with ThreadPoolExecutor(2) as threads, get_context("spawn").Pool(1) as process:
        maps = {"threads": threads.map, "process": process.map, "backwards": run_backwards}
        others = {n: redraws_of(targets, scores, clusters, n_resamples=75, seed=3, map=m) for n, m in maps.items()}
    longer = redraws_of(targets, scores, clusters, n_resamples=80, seed=3)
    for name, other in others.items():
        for model in scores:
            assert theta(other, model).tobytes() == theta(plain, model).tobytes(), name
    assert theta(longer, "ours")[:75].tobytes() == theta(plain, "ours").tobytes()


def test_how_many_are_worked_out_together_does_not_change_a_bit_of_any_metric():
    targets, scores, clusters = make_study(6)
    units = whole_units(clusters)
    statistics = [one.prepare(targets[:, 0], scores["ours"][:, 0], units, 0.5) for one in METRICS.values()]
    plain = redraw(statistics, units, n_resamples=75, seed=3)
    for together in (1, 7, 1000):
        other = redraw(statistics, units, n_resamples=75, seed=3, together=together)
        assert other.tobytes() == plain.tobytes(), together


def test_order_of_rows_and_other_models_do_not_change_a_bit():
    targets, scores, clusters = make_study(7)
    plain = redraws_of(targets, scores, clusters, n_resamples=20, seed=0)
    order = np.random.default_rng(0).permutation(len(targets))
    alone = redraws_of(targets[order], {"ours": scores["ours"][order]}, clusters[order], n_resamples=20, seed=0)
    assert theta(alone, "ours").tobytes() == theta(plain, "ours").tobytes()


def test_averages_are_those_of_each_redraw():
    targets, scores, clusters = make_study(8)
    kinds = ("macro", "weighted", "micro")
    redraws = redraws_of(targets, scores, clusters, averages=kinds, n_resamples=8, seed=5)
    units = whole_units(clusters)
    for r in range(8):
        weights = units.draw([r], 5)[units.of_image, 0]
        known = ~np.isnan(targets)
        by_finding = [
            roc_auc_score(targets[known[:, k], k], scores["ours"][known[:, k], k], sample_weight=weights[known[:, k]])
            for k in range(3)
        ]
        positives = [(weights * (targets[:, k] == 1)).sum() for k in range(3)]
        pooled = roc_auc_score(
            targets[known], scores["ours"][known], sample_weight=np.repeat(weights[:, None], 3, axis=1)[known]
        )
        expected = [np.mean(by_finding), np.average(by_finding, weights=positives), pooled]
        drawn = [redraws.theta["ours", "auroc", kind][r] for kind in kinds]
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-12)


def test_a_finding_of_few_patients_is_in_every_stratified_redraw():
    targets, _, clusters = make_study(4, patients=60)
    targets[:, 0] = 0
    for patient in np.unique(clusters)[:3]:
        targets[clusters == patient, 0] = 1
    strata = rare_strata(clusters, targets)
    units = whole_units(clusters)
    assert sorted(np.concatenate(strata)) == list(range(60))
    assert min(len(one) for one in strata) > 1
    stratified = Units(units.of_image, units.n, strata)
    plain, kept = (one.draw(range(100), 0)[:3].sum(axis=0) for one in (units, stratified))
    assert plain.min() == 0
    assert (kept == 3).all()
    assert (stratified.draw(range(100), 0).sum(axis=0) == 60).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 4), st.floats(0, 1))
def test_strata_hold_every_patient_once_and_never_one_alone(seed, patients, findings, prevalence):
    rng = np.random.default_rng(seed)
    ids = np.r_[np.arange(patients), rng.integers(0, patients, 5)]
    targets = (rng.random((len(ids), findings)) < prevalence).astype(float)
    targets[rng.random(targets.shape) < 0.1] = np.nan
    strata = rare_strata(ids, targets)
    assert sorted(np.concatenate(strata)) == list(range(patients))
    assert min(len(one) for one in strata) > 1 or patients == 1


def test_one_patient_without_a_finding_among_four_with_joins_them():
    targets = np.array([[1.0], [1], [1], [1], [0]])
    (one,) = rare_strata(np.arange(5), targets)
    assert sorted(one) == [0, 1, 2, 3, 4]


def test_redraws_draw_each_patient_once_on_average():
    counts = np.stack([counts_of(30, r, 11) for r in range(2000)])
    assert (counts.sum(axis=1) == 30).all()
    assert np.abs(counts.mean(axis=0) - 1).max() < 0.12
    assert (counts[0] != counts[1]).any()


def test_interval_holds_the_truth_and_null_p_is_about_uniform():
    # Binormal scores: the true AUROC is Phi(effect / sqrt 2).  150 studies of 90 patients with two images each.
    studies, truth, level = 150, norm.cdf(1 / np.sqrt(2)), 0.9
    rng = np.random.default_rng(12)
    held, p = 0, []
    for study in range(studies):
        positive = np.repeat(rng.random(90) < 0.4, 2)
        shared = np.repeat(rng.normal(size=(90, 2)), 2, axis=0) * np.sqrt(0.5)
        noise = shared + rng.normal(size=(180, 2)) * np.sqrt(0.5)
        values = noise + positive[:, None]
        redraws = redraws_of(
            positive[:, None].astype(float),
            {"a": values[:, :1], "b": values[:, 1:]},
            np.repeat(np.arange(90), 2),
            n_resamples=199,
            seed=study,
        )
        drawn = {name: theta(redraws, name)[:, 0] for name in "ab"}
        bounds = percentile_interval(drawn["a"], confidence_level=level)
        held += bounds.low <= truth <= bounds.high
        p.append(paired_test(drawn["a"] - drawn["b"]))
    small, half = np.mean(np.array(p) <= 0.1), np.mean(np.array(p) <= 0.5)
    print(f"held {held} of {studies}; share of p <= 0.1: {small:.3f}, <= 0.5: {half:.3f}")
    assert 0.82 <= held / studies <= 0.96
    assert min(p) >= 2 / 200
    assert 0.04 <= small <= 0.18
    assert 0.38 <= half <= 0.64


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_resamples": 0}, "n_resamples"),
        ({"scores": {}}, "at least one model"),
        ({"scores": {"a": np.zeros((2, 2))}}, r"`scores` must have the shape .* \[a\]"),
        ({"clusters": np.zeros(3)}, "`units` must be of"),
        ({"targets": np.zeros((0, 3))}, r"\(N, K\)"),
    ],
)
def test_wrong_shapes_are_refused(change, sentence):
    targets, scores, clusters = make_study(9)
    given = {"targets": targets, "scores": scores, "clusters": clusters, "n_resamples": 5} | change
    with pytest.raises(ValueError, match=sentence):
        redraws_of(given["targets"], given["scores"], given["clusters"], n_resamples=given["n_resamples"], seed=0)
