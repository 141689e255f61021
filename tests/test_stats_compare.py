import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cxrdist.errors import UsageError
from cxrdist.stats.adjusted import adjust
from cxrdist.stats.bootstrap import Sample, bootstrap, rare_strata
from cxrdist.stats.compare import compare
from cxrdist.stats.delong import delong_test
from cxrdist.stats.families import benjamini_hochberg, max_t
from cxrdist.stats.inference import equivalence, non_inferiority, paired_test
from cxrdist.stats.intervals import interval, percentile_interval, raised_interval
from cxrdist.stats.mcnemar import mcnemar_test
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.options import StatisticsOptions
from cxrdist.stats.permutation import permutation_test
from cxrdist.stats.predictions import Predictions
from cxrdist.stats.resample import whole_units
from cxrdist.stats.threshold import choose_threshold
from cxrdist.stats.undefined import lacking, without_class

FINDINGS = ("effusion", "edema", "mass")
KEPT = {"correction": "max_t"}
"""With it, differences keep their redraws."""


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


def options(**settings) -> StatisticsOptions:
    return StatisticsOptions.build(settings, where="a test")


def make_validation(skill=1.0, *, seed=0):
    one = make_predictions(skill, seed=seed + 50)
    return replace(one, patient_id=np.array([f"val{name}" for name in one.patient_id], dtype=object))


def weakening(result):
    """Return the notes of a comparison but those on its few redraws."""
    return [note for note in result.warnings() if not note.endswith("redraws or more.")]


def test_comparison_holds_the_numbers_of_its_parts():
    files = {
        "random": make_predictions(0.3),
        "ours": make_predictions(1.5, seed=1),
        "other": make_predictions(1.0, seed=2),
    }
    result = compare(files, reference="random", options=options(n_resamples=199, seed=4))
    base = files["ours"]
    scores = {name: one.scores for name, one in files.items()}
    sample = Sample(FINDINGS, base.targets, whole_units(base.patient_id))
    theta = bootstrap(sample, scores, n_resamples=199, seed=4).theta
    for finding in (*FINDINGS, MACRO):
        delta = theta["ours", "auroc", finding] - theta["random", "auroc", finding]
        bounds = percentile_interval(delta)
        difference = result.difference("ours", finding)
        assert (difference.low, difference.high, difference.p) == (bounds.low, bounds.high, paired_test(delta))
        assert difference.value == result.estimate("ours", finding).value - result.estimate("random", finding).value
    known = ~np.isnan(base.targets[:, 1])
    expected = roc_auc_score(base.targets[known, 1], base.scores[known, 1])
    assert result.estimate("ours", "edema").value == pytest.approx(expected, abs=1e-12)
    macro = [result.estimate("ours", finding).value for finding in FINDINGS]
    assert result.estimate("ours").value == pytest.approx(np.mean(macro))
    assert result.n_patients == len(set(base.patient_id))
    assert result.difference("ours", "edema").delong.p == pytest.approx(result.difference("ours", "edema").p, abs=0.1)


def test_families_are_averages_and_findings_of_a_metric_over_all_comparisons():
    files = {"a": make_predictions(0.3), "b": make_predictions(0.6, seed=1), "c": make_predictions(0.7, seed=2)}
    both = [
        compare(files, reference="a", options=options(n_resamples=99, seed=seed, metrics=["auroc", "brier"]))
        for seed in (0, 1)
    ]
    assert [len(adjust(both)[0].differences), len(adjust(both))] == [16, 2]
    for metric, average in product(("auroc", "brier"), (True, False)):

        def of_family(d, metric=metric, average=average):
            return d.metric == metric and (d.finding == MACRO) == average

        alone = [d for d in both[0].differences if of_family(d)]
        np.testing.assert_allclose([d.q for d in alone], benjamini_hochberg(np.array([d.p for d in alone])))
        together = [d for one in adjust(both) for d in one.differences if of_family(d)]
        np.testing.assert_allclose([d.q for d in together], benjamini_hochberg(np.array([d.p for d in together])))


def test_without_reference_every_pair_is_compared():
    files = {name: make_predictions(seed=i) for i, name in enumerate("abc")}
    result = compare(files, options=options(n_resamples=20))
    assert {(d.model, d.reference) for d in result.differences} == {("b", "a"), ("c", "a"), ("c", "b")}


def test_several_seeds_give_their_mean_and_their_spread():
    seeds = [make_predictions(1.0, seed=i) for i in range(3)]
    result = compare(
        {"ours": seeds, "theirs": make_predictions(seed=7)}, reference="theirs", options=options(n_resamples=50)
    )
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
        compare(files, options=options(cluster=cluster, n_resamples=300)).estimate("ours")
        for cluster in ("patient_id", "none")
    )
    assert honest.high - honest.low > 1.4 * (naive.high - naive.low)


def test_one_class_and_rare_findings_are_named_and_json_is_strict():
    base = make_predictions(1.0, seed=1)
    targets = base.targets.copy()
    targets[:, 0] = 0
    targets[:, 2] = 0
    targets[np.flatnonzero(np.isin(base.patient_id, np.unique(base.patient_id)[:2])), 2] = 1
    files = {name: replace(make_predictions(seed=i), targets=targets) for i, name in enumerate("ab")}
    result = compare(files, reference="a", options=options(n_resamples=50))
    text = "\n".join(result.warnings())
    assert "effusion: no positive image, so no AUROC; left out of the averages." in text
    assert (
        f"mass: only 2 positive patients ({int(targets[:, 2].sum())} images); read its interval and p with care."
        in text
    )
    lost = result.estimate("a", "mass").redraws_undefined
    out = f"undefined in {lost} of 50 redraws, which are left out of the interval"
    assert f"mass: AUROC was {out}: they lost a class." in text
    assert f"Macro AUROC was {out}: mass had none there." in text
    read = json.loads(result.to_json())
    assert read["warnings"] == result.warnings()
    row = next(d for d in read["differences"] if d["finding"] == "effusion")
    assert row["p"] is None
    assert result.estimate("a").redraws_undefined == result.estimate("a", "mass").redraws_undefined > 0
    assert {row["finding"] for row in result.rows()} == {*FINDINGS, MACRO}
    assert len(result.difference_rows()) == 4


def test_rates_are_at_the_thresholds_of_validation_and_calls_are_tested_by_mcnemar():
    files = {name: make_predictions(seed=i) for i, name in enumerate("ab")}
    validation = {name: make_validation(seed=i) for i, name in enumerate("ab")}
    chosen = options(n_resamples=30, metrics=["auroc", "sensitivity", "specificity"], threshold="sensitivity=0.9")
    result = compare(files, validation=validation, options=chosen)
    known = ~np.isnan(files["a"].targets[:, 1])
    called = {}
    for name in "ab":
        at = choose_threshold(validation[name].targets[:, 1], validation[name].scores[:, 1], "sensitivity=0.9")
        called[name] = files[name].scores[:, 1] >= at
        positive = files[name].targets[:, 1] == 1
        estimate = result.estimate(name, "edema", "sensitivity")
        assert estimate.threshold == at
        assert estimate.value == pytest.approx(np.mean(called[name][known & positive]), abs=1e-12)
    targets = np.where(files["a"].targets[:, 1] == 0, np.nan, files["a"].targets[:, 1])
    units = whole_units(files["a"].patient_id)
    difference = result.difference("b", "edema", "a", "sensitivity")
    assert difference.p_mcnemar == mcnemar_test(targets, called["b"], called["a"], units).p
    assert difference.delong is None
    assert np.isnan(result.difference("b", "edema", "a").p_mcnemar)


@pytest.mark.parametrize(
    ("validation", "sentence"),
    [
        (None, "must have validation predictions of every model to choose thresholds on, got none"),
        ({"a": make_validation()}, "got a"),
        ({"a": make_predictions(), "b": make_validation()}, "must be of other patients than the test predictions"),
        (
            {"a": make_validation(), "b": replace(make_validation(), findings=("x", "y", "z"))},
            r"got none of effusion, edema, mass \[b\]",
        ),
        (
            {"a": [make_validation()] * 2, "b": make_validation()},
            r"as many validation files as test files \(1\), got 2",
        ),
    ],
)
def test_a_threshold_never_comes_from_the_test_split(validation, sentence):
    files = {name: make_predictions(seed=i) for i, name in enumerate("ab")}
    with pytest.raises(UsageError, match=sentence):
        compare(files, validation=validation, options=options(metrics=["f1"], n_resamples=5))


def test_a_margin_is_a_loss_in_the_metric_s_own_direction():
    files = {name: make_predictions(seed=i) for i, name in enumerate("ab")}
    metrics = ["auroc", "brier", "calibration_slope"]
    result = compare(files, reference="a", options=options(n_resamples=50, margin=0.05, metrics=metrics, **KEPT))
    for metric, sign in (("auroc", 1), ("brier", -1)):
        d = result.difference("b", "mass", metric=metric)
        assert d.p_non_inferior == non_inferiority(sign * d.redraws, 0.05)
        assert d.p_equivalent == equivalence(d.redraws, 0.05)
    assert np.isnan(result.difference("b", "mass", metric="calibration_slope").p_non_inferior)


def test_max_t_is_over_the_shared_redraws_of_a_family():
    files = {name: make_predictions(0.3 * i, seed=i) for i, name in enumerate("abc")}
    result = compare(files, reference="a", options=options(n_resamples=99, correction="max_t"))
    family = [d for d in result.differences if d.finding != MACRO]
    expected = max_t(np.stack([d.redraws for d in family], axis=1), np.array([d.value for d in family]))
    assert [d.q for d in family] == [max(d.p, adjusted) for d, adjusted in zip(family, expected, strict=True)]


def test_a_permutation_test_is_made_where_asked_for():
    files = {name: make_predictions(1.5 * i, seed=i) for i, name in enumerate("ab")}
    plain, permuted = (compare(files, options=options(n_resamples=9, permutations=n)) for n in (0, 199))
    assert np.isnan(plain.difference("b", "mass", "a").p_permutation)
    assert permuted.difference("b", "mass", "a").p_permutation <= 0.02


@pytest.mark.parametrize("method", ["basic", "bca"])
def test_other_intervals_hold_the_value(method):
    files = {name: make_predictions(seed=i) for i, name in enumerate("ab")}
    percentile, other = (
        compare(files, options=options(n_resamples=200, interval=one)) for one in ("percentile", method)
    )
    for one, reference in zip(other.estimates, percentile.estimates, strict=True):
        assert one.low < one.value < one.high
        assert (one.low, one.high) != (reference.low, reference.high)
        assert one.value == reference.value


def test_redrawn_seeds_widen_the_interval_of_a_strategy_whose_seeds_differ():
    seeds = [make_predictions(skill, seed=i) for i, skill in enumerate((0.2, 1.0, 2.0))]
    plain, redrawn = (
        compare({"ours": seeds}, options=options(n_resamples=200, hierarchical=one)).estimate("ours")
        for one in (False, True)
    )
    assert plain.value == redrawn.value
    assert redrawn.high - redrawn.low > 1.3 * (plain.high - plain.low)


def test_subgroups_are_of_the_columns_asked_for():
    files = {name: make_predictions(seed=i, n=300) for i, name in enumerate("ab")}
    result = compare(files, options=options(n_resamples=50, subgroups=["sex"], metrics=["auprc", "auroc"]))
    assert {row.level for row in result.subgroups} == {"F", "M"}
    female = files["a"].extra["sex"] == "F"
    (row,) = (r for r in result.subgroups if (r.model, r.finding, r.level) == ("a", "mass", "F"))
    expected = average_precision_score(files["a"].targets[female, 2], files["a"].scores[female, 2])
    assert row.value == pytest.approx(expected, abs=1e-12)
    assert row.gap_low <= row.gap <= row.gap_high
    with pytest.raises(UsageError, match="A subgroup column must be one of sex, age, got 'sax'"):
        compare(files, options=options(subgroups=["sax"]))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"n_resamples": 0}, "`n_resamples` must be greater than or equal to 1"),
        ({"cluster": "study"}, "`cluster` must be"),
        ({"alpha": 5}, "`alpha` must be less than 1"),
        ({"metrics": ["aurok"]}, "Did you mean 'auroc'"),
        ({"metrics": []}, "must name a metric"),
        ({"threshold": "sensitivity=2"}, "sensitivity"),
        ({"margin": -1}, "`margin` must be"),
        ({"metrics": ["brier", "auroc", "brier"]}, "`metrics` must differ from each other, got brier, auroc, brier"),
        ({"averages": ["macro", "macro"]}, "`averages` must differ from each other, got macro, macro"),
        ({"subgroups": ["sex", "sex"]}, "`subgroups` must differ from each other, got sex, sex"),
        ({"interval": "bca", "hierarchical": True}, "`interval` must be percentile or basic where `hierarchical`"),
    ],
)
def test_wrong_settings_are_wrong_usage(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        options(**settings)


def test_a_reference_that_is_no_model_is_wrong_usage():
    with pytest.raises(UsageError, match=r"`reference` must be one of ours, theirs, got 'our'\. Did you mean 'ours'"):
        compare({"ours": make_predictions(), "theirs": make_predictions(seed=1)}, reference="our")


def other_bits(first, second):
    """Return the fields of two comparisons' rows that differ in any bit."""
    rows = ((one.rows() + one.difference_rows(), [vars(row) for row in one.subgroups]) for one in (first, second))
    return [(ours, theirs) for ours, theirs in zip(*rows, strict=True) if repr(ours) != repr(theirs)]


def test_the_order_in_which_files_are_named_changes_no_bit():
    seeds, chosen = (
        (7, 3, 11),
        options(
            n_resamples=40, hierarchical=True, metrics=["auroc", "f1"], subgroups=["sex"], averages=["macro", "micro"]
        ),
    )
    plain, mirrored = (
        compare(
            {"ours": [make_predictions(seed=i) for i in order], "theirs": make_predictions(seed=1)},
            validation={"ours": [make_validation(seed=i) for i in order], "theirs": make_validation(seed=1)},
            train_seeds={"ours": order},
            options=chosen,
        )
        for order in (seeds, seeds[::-1])
    )
    assert other_bits(plain, mirrored) == []
    assert plain.train_seeds == mirrored.train_seeds == {"ours": (3, 7, 11)}
    jackknives = (
        compare(
            {"ours": [make_predictions(seed=i) for i in order]},
            train_seeds={"ours": order},
            options=options(n_resamples=40, interval="bca"),
        )
        for order in (seeds, seeds[::-1])
    )
    assert other_bits(*jackknives) == []


def test_models_of_the_same_seeds_are_paired_by_seed():
    skills = (0.0, 1.0, 2.0)  # what the seed decides, it decides for both
    files = {
        name: [make_predictions(skill + more, seed=i) for i, skill in enumerate(skills)]
        for name, more in (("a", 0.0), ("b", 0.3))
    }
    chosen = options(n_resamples=200, hierarchical=True)
    paired, unpaired = (
        compare(files, reference="a", train_seeds=seeds, options=chosen)
        for seeds in ({"a": (0, 1, 2), "b": (0, 1, 2)}, {"a": (0, 1, 2), "b": (3, 4, 5)})
    )
    widths = [one.difference("b").high - one.difference("b").low for one in (paired, unpaired)]
    assert widths[0] < 0.6 * widths[1]
    sentence = "b and a: not known to have the same training seeds, so not paired by seed."
    assert sentence in unpaired.warnings() and sentence not in paired.warnings()
    told = "a: 3 files, so its interval is wide: few seeds tell little of how far seeds lie apart."
    assert told in paired.warnings()
    alone = compare({"a": files["a"][0]}, options=chosen)
    assert weakening(alone) == ["a: one file, so no spread between seeds is in its interval."]
    for one in (paired, unpaired):
        d = one.difference("b")
        assert d.standard_error > d.standard_error_patients > 0
    plain = compare(files, reference="a", train_seeds=paired.train_seeds, options=options(n_resamples=200))
    d = plain.difference("b")
    assert d.standard_error == d.standard_error_patients == paired.difference("b").standard_error_patients


@pytest.mark.parametrize("given", [(0, 1), (0, 0, 1)])
def test_seeds_that_do_not_fit_the_files_are_refused(given):
    with pytest.raises(ValueError, match="`train_seeds` must be 3 different numbers"):
        compare({"a": [make_predictions()] * 3}, train_seeds={"a": given}, options=options(n_resamples=2))


def test_ten_positive_images_of_one_patient_are_few():
    base = make_predictions()
    targets = np.zeros_like(base.targets)
    targets[:, 0] = np.arange(len(base)) % 2
    targets[:10, 1] = 1
    targets[:40, 2] = 1
    patient = base.patient_id.copy()
    patient[:10] = "one"
    files = {"a": replace(base, targets=targets, patient_id=patient)}
    count = compare(files, options=options(n_resamples=2)).counts[1]
    assert (count.positive, count.positive_patients) == (10, 1)
    assert count.negative_patients == len(set(patient[10:]))
    by_patient, by_image = (
        [
            note
            for note in compare(files, options=options(n_resamples=2, cluster=cluster)).warnings()
            if note.startswith("edema: ")
        ]
        for cluster in ("patient_id", "none")
    )
    assert by_patient == [
        "edema: all 10 positive images are of one patient, so no interval and no p; left out of the averages."
    ]
    assert by_image == []


def test_an_undefined_number_names_the_model_and_the_reason():
    files = {name: make_predictions(seed=i) for i, name in enumerate("ab")}
    shy = files["b"].scores.copy()
    shy[:, 2] /= 1000
    shy[0, 2] = 1.0  # all that is called: in a third of the redraws nothing is
    files["b"] = replace(files["b"], scores=shy)
    validation = {name: make_validation(seed=i) for i, name in enumerate("ab")}
    result = compare(files, validation=validation, options=options(n_resamples=60, metrics=["auroc", "ppv", "mcc"]))
    undefined = result.estimate("b", "mass", "ppv").redraws_undefined
    assert undefined > 0 and result.estimate("a", "mass", "ppv").redraws_undefined == 0
    text = "\n".join(result.warnings())
    out = f"of b was undefined in {undefined} of 60 redraws, which are left out of the interval: "
    assert f"mass: PPV {out}in them no image was called." in text
    assert f"mass: MCC {out}in them all images were called, or none." in text
    assert f"Macro PPV, MCC {out.replace('was', 'were')}mass had none there." in text
    assert "AUROC" not in text
    shy[0, 2] = 0.0
    nothing = compare(files, validation=validation, options=options(n_resamples=20, metrics=["auroc", "ppv"]))
    sentence = "mass: PPV of b is undefined, as no image was called; left out of the averages for all models."
    assert weakening(nothing) == [sentence]
    assert nothing.estimate("a", metric="ppv").value == pytest.approx(
        np.mean([nothing.estimate("a", finding, "ppv").value for finding in FINDINGS[:2]])
    )


def test_a_finding_of_one_class_is_left_out_of_what_needs_the_other_alone():
    base = make_predictions()
    targets = base.targets.copy()
    targets[:, 2] = 0
    files = {name: replace(make_predictions(seed=i), targets=targets) for i, name in enumerate("ab")}
    shy = files["b"].scores.copy()
    shy[:, 2] = 0.0
    files["b"] = replace(files["b"], scores=shy)
    validation = {name: make_validation(seed=i) for i, name in enumerate("ab")}
    chosen = options(n_resamples=9, metrics=["auroc", "brier", "sensitivity", "ppv"])
    notes = weakening(compare(files, validation=validation, options=chosen))
    assert notes == [
        "mass: no positive image, so no AUROC, Sensitivity; left out of their averages.",
        "mass: PPV of b is undefined, as no image was called; left out of the averages for all models.",
    ]
    notes = weakening(compare(files, options=options(n_resamples=9, metrics=["brier"])))
    assert notes == ["mass: no positive image; read its numbers with care."]


def test_a_lost_class_is_told_from_other_reasons():
    base = make_predictions(seed=1)
    targets = base.targets.copy()
    targets[:, 2] = 0
    few = [int(np.flatnonzero(base.patient_id == name)[0]) for name in sorted(set(base.patient_id))[:3]]
    targets[few, 2] = 1
    scores = base.scores.copy()
    order = np.argsort(np.argsort(scores[:, 2]))
    scores[:, 2] = 0.2 + 0.5 * order / len(order)
    scores[few, 2] = (0.9, 0.91, 0.1)  # without the third, the classes are parted
    files = {"a": replace(base, targets=targets, scores=scores)}
    result = compare(files, options=options(n_resamples=200, metrics=["calibration_slope"], averages=[]))
    one = result.estimate("a", "mass")
    assert 0 < one.redraws_one_class < one.redraws_undefined < 200
    rest = one.redraws_undefined - one.redraws_one_class
    told = (
        f"mass: Calibration slope was undefined in {one.redraws_undefined} of 200 redraws, which are left out of the "
        f"interval: {one.redraws_one_class} lost a class; in {rest} the probabilities parted the classes without "
        "overlap, or were all alike. The interval of the slope is cut: those left out are the steepest."
    )
    assert told in result.warnings()


def test_a_finding_that_validation_lacks_has_no_threshold_and_is_named():
    files = {name: make_predictions(seed=i) for i, name in enumerate("ab")}
    validation = {"a": make_validation(), "b": make_validation(seed=1).only(["mass", "edema"])}
    result = compare(files, validation=validation, options=options(n_resamples=9, metrics=["f1", "ppv", "auroc"]))
    told = (
        "effusion: F1, PPV of b are undefined, as the validation predictions lack the finding or a class of it, so "
        "there is no threshold; left out of the averages for all models."
    )
    assert weakening(result) == [told]
    assert np.isnan(result.estimate("b", "effusion", "f1").threshold)
    assert not np.isnan([result.estimate("b", "mass", "f1").value, result.estimate("b", metric="f1").value]).any()
    assert not np.isnan(result.estimate("a", "effusion", "f1").value)


def test_numbers_with_a_target_have_no_average_in_which_they_would_cancel():
    files = {name: make_predictions(seed=i) for i, name in enumerate("ab")}
    chosen = options(n_resamples=20, metrics=["calibration_slope", "auroc"], averages=["macro", "micro", "weighted"])
    result = compare(files, options=chosen)
    for average in ("macro", "weighted"):
        assert np.isnan(result.estimate("a", average).value)
        assert result.difference("b", average, "a") is None
        assert result.difference("b", average, "a", "auroc") is not None
    assert not np.isnan(result.difference("b", "micro", "a").q)
    told = "Calibration slope: no average over findings, in which values on either side of 1 would cancel."
    assert told in result.warnings()


def test_families_of_other_corrections_or_redraws_are_not_adjusted_together():
    files = {name: make_predictions(seed=i) for i, name in enumerate("ab")}
    base = compare(files, options=options(n_resamples=9))
    for name, settings in (("correction", {"n_resamples": 9, "correction": "by"}), ("n_resamples", {"n_resamples": 8})):
        with pytest.raises(ValueError, match=f"`{name}` must be one for a family"):
            adjust([base, compare(files, options=options(**settings))])


def test_redraws_of_differences_are_kept_for_max_t_alone():
    files = {name: make_predictions(seed=i) for i, name in enumerate("ab")}
    sizes = {
        correction: {
            d.redraws.size for d in compare(files, options=options(n_resamples=9, correction=correction)).differences
        }
        for correction in ("bh", "max_t")
    }
    assert sizes == {"bh": {0}, "max_t": {9}}


def test_delong_s_standard_error_is_told():
    files = {name: make_predictions(seed=i) for i, name in enumerate("ab")}
    result = compare(files, options=options(n_resamples=9))
    by_finding = {row["finding"]: row["delong_standard_error"] for row in result.difference_rows()}
    assert np.isnan(by_finding[MACRO])
    units = whole_units(files["a"].patient_id)
    for k, finding in enumerate(FINDINGS):
        columns = (files[name].scores[:, k] for name in "ba")
        expected = delong_test(files["a"].targets[:, k], *columns, units.of_image)
        assert (
            by_finding[finding] == expected.standard_error == result.difference("b", finding, "a").delong.standard_error
        )


def test_bca_bounds_are_those_of_the_jackknife_written_out():
    one = make_predictions(0.5)
    result = compare({"a": one}, options=options(n_resamples=199, interval="bca", seed=3))
    units = whole_units(one.patient_id)
    sample = Sample(FINDINGS, one.targets, units)
    theta = bootstrap(sample, {"a": one.scores}, n_resamples=199, seed=3).theta["a", "auroc", "mass"]
    left_out = []
    for patient in range(units.n):
        kept = units.of_image != patient
        left_out.append(roc_auc_score(one.targets[kept, 2], one.scores[kept, 2]))
    estimate = result.estimate("a", "mass")
    expected, without = (
        interval(theta, method="bca", point=estimate.value, jackknife=np.array(jackknife))
        for jackknife in (left_out, np.zeros(units.n))
    )
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert abs(expected.low - without.low) > 1e-6


def test_stratified_redraws_keep_a_rare_finding():
    base = make_predictions()
    targets = base.targets.copy()
    targets[:, 2] = 0
    rare = [int(np.flatnonzero(base.patient_id == name)[0]) for name in sorted(set(base.patient_id))[:2]]
    targets[rare, 2] = 1
    files = {"a": replace(base, targets=targets)}
    plain, stratified = (
        compare(files, options=options(n_resamples=100, stratified=one)).estimate("a", "mass").redraws_undefined
        for one in (False, True)
    )
    assert plain > 5
    assert stratified == 0


def test_the_permutation_test_swaps_patients_not_images():
    one, other = make_predictions(0.3, n=60, patients=40), make_predictions(1.2, n=60, patients=40, seed=1)
    many = np.repeat(np.arange(60), 6)  # a patient's six images are alike
    ids = {"image_id": np.array([f"i{i:03d}" for i in range(360)], dtype=object)}
    files = {
        name: replace(each.rows(many), **ids, patient_id=each.image_id[many])
        for name, each in (("a", one), ("b", other))
    }
    by_patient, by_image = (
        compare(files, options=options(n_resamples=2, permutations=999, cluster=cluster)).difference("b", "edema", "a")
        for cluster in ("patient_id", "none")
    )
    expected = permutation_test(
        one.targets[:, 1],
        other.scores[None, :, 1],
        one.scores[None, :, 1],
        whole_units(one.image_id),
        n_permutations=999,
        seed=0,
    )
    assert by_patient.p_permutation == pytest.approx(expected, abs=0.05)
    assert by_image.p_permutation < by_patient.p_permutation / 2


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_an_interval_of_the_calibration_error_holds_its_value(method):
    files = {name: make_predictions(seed=i) for i, name in enumerate("ab")}
    result = compare(files, options=options(n_resamples=200, metrics=["ece", "auroc"], interval=method))
    one = result.estimate("a", "mass", "ece")
    sample = Sample(FINDINGS, files["a"].targets, whole_units(files["a"].patient_id))
    theta = bootstrap(sample, {"a": files["a"].scores}, metrics=["ece"], n_resamples=200, seed=0).theta
    assert percentile_interval(theta["a", "ece", "mass"]).low > one.low
    bounds = raised_interval(theta["a", "ece", "mass"], point=one.value)
    assert (one.low, one.high) == (bounds.low, bounds.high)
    for finding in (*FINDINGS, MACRO):
        one = result.estimate("a", finding, "ece")
        assert 0 <= one.low <= one.value <= one.high
    if method == "percentile":
        d = result.difference("b", "mass", "a", "ece")
        both = {name: one.scores for name, one in files.items()}
        theta = bootstrap(sample, both, metrics=["ece"], n_resamples=200, seed=0).theta
        bounds = percentile_interval(theta["b", "ece", "mass"] - theta["a", "ece", "mass"])
        assert (d.low, d.high) == (bounds.low, bounds.high)


def test_bca_of_stratified_redraws_knows_of_the_strata():
    one = make_predictions(0.5)
    targets = one.targets.copy()
    targets[:, 2] = 0
    rare = [int(np.flatnonzero(one.patient_id == name)[0]) for name in sorted(set(one.patient_id))[:8]]
    targets[rare, 2] = 1
    one = replace(one, targets=targets)
    estimate = compare({"a": one}, options=options(n_resamples=199, interval="bca", stratified=True)).estimate(
        "a", "mass"
    )
    units = replace(whole_units(one.patient_id), strata=rare_strata(one.patient_id, targets))
    redraws = bootstrap(Sample(FINDINGS, targets, units), {"a": one.scores}, n_resamples=199, seed=0, leave_out=True)
    column = ("a", "auroc", "mass")
    given = {"method": "bca", "point": estimate.value, "jackknife": redraws.without[column]}
    expected = interval(redraws.theta[column], strata=units.strata, **given)
    assert (estimate.low, estimate.high) == (expected.low, expected.high)
    assert interval(redraws.theta[column], **given) != expected


def test_gaps_of_subgroups_are_adjusted_as_asked_for():
    files = {name: make_predictions(seed=i, n=300) for i, name in enumerate("ab")}
    plain, adjusted = (
        compare(files, options=options(n_resamples=99, subgroups=["sex"], correction=correction)).subgroups
        for correction in ("none", "holm")
    )
    assert [row.q for row in plain] == [row.p for row in plain]
    assert [row.p for row in adjusted] == [row.p for row in plain]
    assert any(row.q > row.p for row in adjusted)


def test_subgroups_have_no_average_in_which_numbers_would_cancel():
    files = {"a": make_predictions(n=300)}
    result = compare(files, options=options(n_resamples=9, subgroups=["sex"], metrics=["calibration_intercept"]))
    assert {row.finding for row in result.subgroups} == set(FINDINGS)


def test_subgroups_draw_the_seeds_that_models_were_trained_with():
    seeds = [make_predictions(skill, seed=i, n=300) for i, skill in enumerate((0.2, 1.0, 2.0))]
    result = compare(
        {"a": seeds, "b": seeds},
        train_seeds={"a": (0, 1, 2), "b": (0, 1, 2)},
        options=options(n_resamples=50, hierarchical=True, subgroups=["sex"]),
    )
    ours, theirs = ([replace(row, model="") for row in result.subgroups if row.model == name] for name in "ab")
    assert repr(ours) == repr(theirs)


def test_a_metric_lacks_the_classes_alone_that_it_needs():
    base = make_predictions()
    targets = base.targets.copy()
    targets[:, 2] = 0
    targets[:2, 2] = 1
    sample = Sample(FINDINGS, targets, whole_units(base.image_id))
    lost = without_class(sample, n_resamples=40, seed=1, map=map)
    drawn = [whole_units(base.image_id).draw(range(r, r + 1), 1)[:, 0] for r in range(40)]
    without_positives = [not counts[:2].any() for counts in drawn]
    assert 0 < sum(without_positives) < 40
    for metric, expected in (("auroc", without_positives), ("sensitivity", without_positives)):
        assert lacking(metric, lost["mass"]).tolist() == expected
    for metric in ("specificity", "ppv", "brier"):
        assert not lacking(metric, lost["mass"]).any()
    assert not lacking("auroc", lost["micro"]).any()


def of_one_patient(skills):
    """Return models on a sample where all images with a mass are of one patient."""
    base = make_predictions()
    targets = base.targets.copy()
    names, images = np.unique(base.patient_id, return_counts=True)
    targets[:, 2] = base.patient_id == names[np.argmax(images)]
    return {f"skill {s}": replace(make_predictions(s, seed=i), targets=targets) for i, s in enumerate(skills)}


@pytest.mark.parametrize("settings", [{}, {"interval": "bca"}, {"correction": "max_t"}, {"margin": 0.9}])
def test_a_finding_of_one_positive_patient_has_no_interval_no_p_and_no_part_in_averages(settings):
    files = of_one_patient((0.0, 2.0))
    averages = ["macro", "weighted"]
    result = compare(files, options=options(n_resamples=200, permutations=20, averages=averages, **settings))
    d = result.difference("skill 2.0", "mass", "skill 0.0")
    assert not np.isnan(d.value)
    assert np.isnan([d.low, d.high, d.p, d.q, d.p_permutation, d.p_non_inferior, d.p_equivalent]).all()
    assert d.delong is None
    without = {name: one.only(FINDINGS[:2]) for name, one in files.items()}
    other = compare(without, options=options(n_resamples=200, permutations=20, averages=averages, **settings))
    for model in files:
        one = result.estimate(model, "mass")
        assert not np.isnan(one.value) and np.isnan([one.low, one.high]).all()
        for average in averages:
            assert repr(result.estimate(model, average)) == repr(other.estimate(model, average))
    for finding in ("effusion", "edema", *averages):
        ours, theirs = (one.difference("skill 2.0", finding, "skill 0.0") for one in (result, other))
        assert repr(ours) == repr(theirs)  # in q as well: it takes no part in the family
    images = int(files["skill 0.0"].targets[:, 2].sum())
    assert weakening(result) == [
        f"mass: all {images} positive images are of one patient, so no interval and no p; left out of the averages."
    ]


def test_one_positive_patient_is_enough_for_a_metric_that_needs_no_positive():
    result = compare(of_one_patient((0.0, 2.0)), options=options(n_resamples=50, metrics=["auroc", "brier"]))
    assert not np.isnan(result.difference("skill 2.0", "mass", "skill 0.0", "brier").p)
    assert "so no interval and no p of its AUROC; left out of their averages." in "\n".join(result.warnings())


def test_p_is_withheld_where_over_a_fifth_of_the_redraws_is_undefined():
    base = make_predictions()
    rare = np.isin(base.patient_id, np.unique(base.patient_id)[:2])
    files = {}
    for i, skill in enumerate((0.0, 2.0)):
        one = make_predictions(skill, seed=i)
        targets = one.targets.copy()
        targets[:, 1] = rare  # either pair of patients is lost in an eighth of the redraws, one of both in a quarter
        targets[:, 2] = np.isin(base.patient_id, np.unique(base.patient_id)[2:4])
        files[f"skill {skill}"] = replace(one, targets=targets)
    result = compare(files, options=options(n_resamples=400, margin=0.9, **KEPT))
    edema, macro = (result.difference("skill 2.0", finding, "skill 0.0") for finding in ("edema", MACRO))
    assert edema.redraws_undefined < 80 < macro.redraws_undefined
    assert not np.isnan([edema.p, edema.q]).any()
    assert np.isnan([macro.p, macro.q, macro.p_non_inferior, macro.p_equivalent]).all()
    assert macro.low < macro.value < macro.high
    told = (
        "Macro: no p and no q of AUROC, as over 20 % of the redraws are undefined and the others are a biased choice."
    )
    assert told in result.warnings()


def test_a_sample_of_three_patients_says_that_no_p_is_to_be_relied_on():
    files = {}
    for i, skill in enumerate((0.0, 9.0)):
        one = make_predictions(skill, seed=i, patients=3)
        files[f"skill {skill}"] = one
    result = compare(files, options=options(n_resamples=400))
    assert any(note.startswith("Only 3 patients: do not rely on any interval or p.") for note in result.warnings())
    assert not any(note.startswith("Only") for note in compare({"a": make_predictions()}).warnings())


def test_a_subgroup_column_is_taken_from_whichever_file_has_it():
    files = {name: make_predictions(seed=i, n=300) for i, name in enumerate("ab")}
    chosen = options(n_resamples=20, subgroups=["sex"])
    expected = compare(files, options=chosen).subgroups
    for without in "ab":
        some = {name: replace(one, extra={} if name == without else one.extra) for name, one in files.items()}
        assert repr(compare(some, options=chosen).subgroups) == repr(expected)


def test_files_that_disagree_on_a_subgroup_are_refused():
    files = {name: make_predictions(seed=i, n=300) for i, name in enumerate("abc")}
    sex = files["b"].extra["sex"].copy()
    sex[:5] = None
    files["b"] = replace(files["b"], extra={"sex": sex, "age": files["b"].extra["age"].astype(str)})
    files["c"] = replace(files["c"], extra={"age": files["c"].extra["age"].astype(float)})
    with pytest.raises(UsageError) as caught:
        compare(files, options=options(n_resamples=20, subgroups=["sex"]))
    assert str(caught.value) == (
        "b must have the same values as a in column `sex`, got 5 others (img0000, img0001, img0002, ...). Take the "
        "column from one source."
    )
    assert compare(files, options=options(n_resamples=20, subgroups=["age"])).subgroups  # 63, "63" and 63.0 are one


def test_too_few_redraws_for_the_level_or_the_family_are_named():
    files = {name: make_predictions(i / 2, seed=i) for i, name in enumerate("abcd")}
    for correction, n, short in (
        ("holm", 700, True),
        ("holm", 720, False),
        ("none", 400, False),
        ("max_t", 400, False),
    ):
        result = compare(files, options=options(n_resamples=n, correction=correction))
        notes = [note for note in result.warnings() if note.startswith("With ")]
        assert len(notes) == short
        if short:  # three findings of six pairs: 18 x 2 / 701
            assert notes == [
                "With 700 redraws no p is below 0.0029, so no q in a family of 18 can be below 0.051: use 720 redraws "
                "or more."
            ]
    few, enough = (compare({"a": files["a"]}, options=options(n_resamples=n)).warnings() for n in (399, 400))
    assert few == [
        "Of 399 redraws, fewer than 10 lie beyond either end of a 95 % interval, so its ends are chance: use 400 "
        "redraws or more."
    ]
    assert enough == []


def test_tests_that_are_not_made_and_shared_margins_are_named():
    files = {"a": [make_predictions(seed=i) for i in range(2)], "b": make_predictions(seed=7)}
    validation = {"a": [make_validation(seed=i) for i in range(2)], "b": make_validation(seed=7)}
    chosen = options(n_resamples=9, permutations=9, margin=0.02, metrics=["auroc", "sensitivity"])
    assert weakening(compare(files, validation=validation, options=chosen)) == [
        "No permutation p of b and a: it needs as many files of the one as of the other.",
        "No McNemar p of b and a: it compares the calls of one file with those of one other.",
        "The margin of 0.02 is taken for AUROC, Sensitivity alike, though their scales differ: what is small in the "
        "one may be large in the other.",
    ]


def test_max_t_of_two_redrawn_seeds_is_refused():
    files = {"a": [make_predictions(seed=i) for i in range(3)], "b": make_predictions(seed=7)}
    with pytest.raises(UsageError, match=r"must have 4 training seeds or more of a model \(or one\), got 3 of a\."):
        compare(files, options=options(n_resamples=9, hierarchical=True, correction="max_t"))


def test_micro_average_of_one_positive_patient_has_no_interval_and_no_p():
    files = {name: one.only(["mass"]) for name, one in of_one_patient((0.0, 2.0)).items()}
    result = compare(files, options=options(n_resamples=50, averages=["macro", "micro"]))
    micro = result.difference("skill 2.0", "micro", "skill 0.0")
    assert not np.isnan(micro.value)
    assert np.isnan([micro.p, micro.q, micro.low, result.estimate("skill 0.0", "micro").low]).all()
    assert np.isnan(result.estimate("skill 0.0").value)
    assert not any("left out of the interval" in note for note in result.warnings())
