import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxrdist.errors import UsageError
from cxrdist.stats import benjamini_hochberg, bootstrap_auroc, paired_test, percentile_interval
from cxrdist.stats.compare import MACRO, adjust, compare
from cxrdist.stats.predictions import Predictions

FINDINGS = ("effusion", "edema", "mass")


def make_predictions(skill=1.0, *, seed=0, n=120, patients=50):
    """Return predictions of one model; images and labels are always the same, only `skill` and `seed` change scores."""
    rng = np.random.default_rng(99)
    targets = (rng.random((n, 3)) < (0.4, 0.3, 0.2)).astype(float)
    patient = rng.integers(0, patients, n)
    noise = np.random.default_rng(seed).normal(size=targets.shape)
    scores = 1 / (1 + np.exp(-(skill * targets + noise)))
    targets[::17, 1] = np.nan
    return Predictions(
        image_id=np.array([f"img{i:04d}" for i in range(n)], dtype=object),
        patient_id=np.array([f"pat{i:03d}" for i in patient], dtype=object),
        findings=FINDINGS,
        targets=targets,
        scores=scores,
        extra={"sex": np.where(patient % 2, "F", "M").astype(object), "age": 30 + patient},
    )


def test_comparison_holds_the_numbers_of_its_parts():
    files = {
        "random": make_predictions(0.3),
        "ours": make_predictions(1.5, seed=1),
        "other": make_predictions(1.0, seed=2),
    }
    result = compare(files, reference="random", n_resamples=199, seed=4)
    base = files["ours"]
    scores = {name: one.scores for name, one in files.items()}
    redraws = bootstrap_auroc(base.targets, scores, base.patient_id, n_resamples=199, seed=4)
    delta = redraws.theta["ours"] - redraws.theta["random"]
    for k, finding in enumerate((*FINDINGS, MACRO)):
        bounds = percentile_interval(delta[:, k])
        difference = result.difference("ours", finding)
        assert (difference.low, difference.high, difference.p) == (bounds.low, bounds.high, paired_test(delta[:, k]))
        assert difference.value == result.estimate("ours", finding).value - result.estimate("random", finding).value
    known = ~np.isnan(base.targets[:, 1])
    expected = roc_auc_score(base.targets[known, 1], base.scores[known, 1])
    assert result.estimate("ours", "edema").value == pytest.approx(expected, abs=1e-12)
    macro = [result.estimate("ours", finding).value for finding in FINDINGS]
    assert result.estimate("ours").value == pytest.approx(np.mean(macro))
    assert result.n_patients == len(set(base.patient_id))
    assert result.difference("ours", "edema").delong.p == pytest.approx(result.difference("ours", "edema").p, abs=0.1)


def test_families_are_macro_and_per_finding_over_all_comparisons():
    files = {"a": make_predictions(0.3), "b": make_predictions(0.6, seed=1), "c": make_predictions(0.7, seed=2)}
    both = [compare(files, reference="a", n_resamples=99, seed=seed) for seed in (0, 1)]
    assert [len(adjust(both)[0].differences), len(adjust(both))] == [8, 2]
    for of_family in (lambda d: d.finding == MACRO, lambda d: d.finding != MACRO):
        alone = [d for d in both[0].differences if of_family(d)]
        np.testing.assert_allclose([d.q for d in alone], benjamini_hochberg(np.array([d.p for d in alone])))
        together = [d for one in adjust(both) for d in one.differences if of_family(d)]
        np.testing.assert_allclose([d.q for d in together], benjamini_hochberg(np.array([d.p for d in together])))


def test_without_reference_every_pair_is_compared():
    files = {name: make_predictions(seed=i) for i, name in enumerate("abc")}
    result = compare(files, n_resamples=20)
    assert {(d.model, d.reference) for d in result.differences} == {("b", "a"), ("c", "a"), ("c", "b")}


def test_several_seeds_give_their_mean_and_their_spread():
    seeds = [make_predictions(1.0, seed=i) for i in range(3)]
    result = compare({"ours": seeds, "theirs": make_predictions(seed=7)}, reference="theirs", n_resamples=50)
    estimate = result.estimate("ours", "mass")
    single = [roc_auc_score(one.targets[:, 2], one.scores[:, 2]) for one in seeds]
    assert estimate.by_member == pytest.approx(single)
    assert estimate.value == pytest.approx(np.mean(single))
    assert estimate.spread == pytest.approx(np.std(single, ddof=1))
    assert np.isnan(result.estimate("theirs").spread)


def test_clusters_widen_the_interval_where_images_of_a_patient_agree():
    one = make_predictions(n=80, patients=60)
    repeated = one.rows(np.repeat(np.arange(80), 3))
    ids = {"image_id": np.array([f"i{i}" for i in range(240)], dtype=object), "patient_id": repeated.image_id}
    files = {"ours": replace(repeated, **ids)}
    honest, naive = (
        compare(files, cluster=cluster, n_resamples=300).estimate("ours") for cluster in ("patient_id", "none")
    )
    assert honest.high - honest.low > 1.4 * (naive.high - naive.low)


def test_one_class_and_rare_findings_are_named_and_json_is_strict():
    base = make_predictions(1.0, seed=1)
    targets = base.targets.copy()
    targets[:, 0] = 0
    targets[:, 2] = 0
    targets[3, 2] = 1
    files = {name: replace(make_predictions(seed=i), targets=targets) for i, name in enumerate("ab")}
    result = compare(files, reference="a", n_resamples=50)
    text = "\n".join(result.warnings())
    assert "effusion: no positive image, so no AUROC; left out of the macro mean." in text
    assert "mass: only 1 positive image; read its interval with care." in text
    assert "of 50 redraws held one class only" in text
    assert "of 50 redraws lacked a class of one finding" in text
    read = json.loads(result.to_json())
    assert read["warnings"] == result.warnings()
    row = next(d for d in read["differences"] if d["finding"] == "effusion")
    assert row["p"] is None
    assert result.macro_redraws_undefined == result.counts[2].redraws_undefined > 0
    assert {row["finding"] for row in result.rows()} == {*FINDINGS, MACRO}
    assert len(result.difference_rows()) == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"reference": "our"}, "`reference` must be one of ours, theirs, got 'our'. Did you mean 'ours'"),
        ({"n_resamples": 0}, "`n_resamples` must be 1 or more"),
        ({"cluster": "study"}, "`cluster` must be one of patient_id, none"),
        ({"alpha": 5}, r"`alpha` must be in \(0, 1\)"),
    ],
)
def test_wrong_settings_are_wrong_usage(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        compare({"ours": make_predictions(), "theirs": make_predictions(seed=1)}, **settings)
