from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cxrdist.errors import UsageError
from cxrdist.stats.auroc import auroc, auroc_statistic
from cxrdist.stats.families import adjust
from cxrdist.stats.inference import paired_test
from cxrdist.stats.intervals import interval
from cxrdist.stats.levels import MOST_LEVELS
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.resample import Units, redraw, whole_units
from cxrdist.stats.seeds import combine_seeds
from cxrdist.stats.subgroups import SubgroupPlan, compare_subgroups, subgroup_masks

FINDINGS = ("effusion", "edema")
PLAN = SubgroupPlan(n_resamples=120, seed=5)


def make_study(seed, *, patients=120):
    """Return targets, scores, units, and columns; the model is worse in women, and projection varies in a patient."""
    print(f"study of seed {seed}")
    rng = np.random.default_rng(seed)
    of_image = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    sex = rng.permuted(np.repeat(["F", "M"], patients // 2)).astype(object)[of_image]
    targets = (rng.random((len(of_image), 2)) < 0.4).astype(float)
    effect = np.where(sex == "F", 0.6, 2.0)[:, None]
    scores = {name: targets * effect * pull + rng.normal(size=targets.shape) for name, pull in (("a", 1), ("b", 0.5))}
    targets[rng.random(targets.shape) < 0.05] = np.nan
    columns = {"sex": sex, "projection": rng.choice(["PA", "AP", "lateral"], len(of_image)).astype(object)}
    return targets, scores, whole_units(of_image), columns


def row_of(rows, **wanted):
    (row,) = [one for one in rows if all(getattr(one, name) == value for name, value in wanted.items())]
    return row


@pytest.mark.parametrize(
    ("column", "name", "expected"),
    [
        (["F", "M", None, " F", ""], "sex", {"F": [0, 3], "M": [1], "missing": [2, 4]}),
        (["F", "M", "unknown", "M", np.nan], "sex", {"F": [0], "M": [1, 3], "missing": [2, 4]}),
        ([0, 17.9, 18, 39, 40, 59, 60, 79, 80, 120], "age", {
            "0-17": [0, 1], "18-39": [2, 3], "40-59": [4, 5], "60-79": [6, 7], "80+": [8, 9]}),
        ([414, -1, np.nan, 50], "Age", {"40-59": [3], "implausible": [0, 1], "missing": [2]}),
        (["50", " 7", None], "age", {"0-17": [1], "40-59": [0], "missing": [2]}),
        ([2.0, 1.0, np.nan, 10.0, 2.0], "site", {"1": [1], "2": [0, 4], "10": [3], "missing": [2]}),
        ([0.5, 0.25, 0.5], "dose", {"0.25": [1], "0.5": [0, 2]}),
        ([True, False, True], "portable", {"False": [1], "True": [0, 2]}),
        ([1, "a", 1], "site", {"1": [0, 2], "a": [1]}),
        ([2**60, 2**60 + 1], "code", {str(2**60): [0], str(2**60 + 1): [1]}),
        ([None, None], "sex", {"missing": [0, 1]}),
        ([pd.NA, "x", pd.NaT], "site", {"x": [1], "missing": [0, 2]}),
        ([], "sex", {}),
    ],
)  # fmt: skip
def test_levels_of_a_column_by_hand(column, name, expected):
    masks = subgroup_masks(np.array(column, dtype=object), name)
    assert {level: np.flatnonzero(mask).tolist() for level, mask in masks.items()} == expected
    assert list(masks) == list(expected)


def test_every_image_is_in_exactly_one_level_whatever_the_column():
    rng = np.random.default_rng(0)
    for column, name in (
        (rng.integers(-5, 130, 300), "age"),
        (np.where(rng.random(300) < 0.1, np.nan, rng.normal(size=300)), "score"),
        (rng.choice(["x", "y", ""], 300), "site"),
        (rng.integers(0, 4, 300).astype(np.int8), "view"),
        (np.r_[np.zeros(200), np.arange(100)], "skewed"),
    ):
        masks = subgroup_masks(column, name)
        np.testing.assert_array_equal(np.sum(list(masks.values()), axis=0), 1)


def test_many_numbers_are_cut_at_their_quartiles():
    masks = subgroup_masks(np.arange(100, 0, -1), "exposure")
    assert list(masks) == ["up to 25", "over 25 up to 50", "over 50 up to 75", "over 75"]
    assert [int(mask.sum()) for mask in masks.values()] == [25] * 4
    # Ties merge quartiles; no level is empty.
    assert list(subgroup_masks(np.r_[np.zeros(200), np.arange(1, 101)], "x")) == [
        "up to 0",
        "over 0 up to 25",
        "over 25",
    ]


def test_columns_that_make_no_subgroups_are_refused_without_their_values():
    names = np.array([f"secret-{i}" for i in range(MOST_LEVELS + 1)], dtype=object)
    with pytest.raises(UsageError, match=r"Column `note` must have at most 20 different values.* got 21") as error:
        subgroup_masks(names, "note")
    assert "secret" not in str(error.value)
    assert len(subgroup_masks(names[:-1], "note")) == MOST_LEVELS
    with pytest.raises(UsageError, match="Column `age` must hold ages in years"):
        subgroup_masks(np.array(["63Y", "7"], dtype=object), "age")
    with pytest.raises(UsageError, match="Column `dose` must hold finite numbers"):
        subgroup_masks(np.r_[np.arange(30.0), np.inf], "dose")
    with pytest.raises(ValueError, match="must have the shape"):
        subgroup_masks(np.zeros((3, 2)), "x")


def test_a_level_and_its_gap_are_those_of_plain_redraws_of_the_same_patients():
    targets, scores, units, columns = make_study(0)
    rows = compare_subgroups(targets, scores, FINDINGS, columns, units, plan=PLAN)
    assert len(rows) == (2 + 3) * 2 * 3
    female = columns["sex"] == "F"
    counts = units.draw(range(120), 5)
    for k, finding in enumerate(FINDINGS):
        theta = np.empty((120, 2))
        for r in range(120):
            images = np.repeat(np.arange(len(targets)), counts[units.of_image, r])
            for side, held in enumerate((female, ~female)):
                chosen = images[held[images] & ~np.isnan(targets[images, k])]
                theta[r, side] = roc_auc_score(targets[chosen, k], scores["a"][chosen, k])
        row = row_of(rows, model="a", finding=finding, column="sex", level="F")
        known = female & ~np.isnan(targets[:, k])
        assert row.n_images == known.sum()
        assert row.n_patients == len(np.unique(units.of_image[known]))
        assert row.n_positive == (targets[female, k] == 1).sum()
        assert row.value == pytest.approx(roc_auc_score(targets[known, k], scores["a"][known, k]), abs=1e-12)
        bounds, gap = interval(theta[:, 0]), interval(theta[:, 0] - theta[:, 1])
        np.testing.assert_allclose([row.low, row.high], [bounds.low, bounds.high], rtol=0, atol=1e-12)
        np.testing.assert_allclose([row.gap_low, row.gap_high], [gap.low, gap.high], rtol=0, atol=1e-12)
        assert row.p == paired_test(theta[:, 0] - theta[:, 1])
        # Two levels: each is the other's rest.
        other = row_of(rows, model="a", finding=finding, column="sex", level="M")
        assert other.gap == -row.gap
        assert other.p == row.p
        assert row.gap < 0
        assert row.p < 0.05
        assert row.note == ""


def test_macro_is_the_mean_inside_each_redraw():
    targets, scores, units, columns = make_study(1)
    rows = compare_subgroups(targets, scores, FINDINGS, {"sex": columns["sex"]}, units, plan=PLAN)
    within = np.where((columns["sex"] == "F")[:, None], targets, np.nan)
    statistics = [auroc_statistic(within[:, k], scores["b"][:, k], units) for k in range(2)]
    theta = redraw(statistics, units, n_resamples=120, seed=5).mean(axis=1)
    row = row_of(rows, model="b", finding=MACRO, level="F")
    singles = [row_of(rows, model="b", finding=finding, level="F") for finding in FINDINGS]
    assert row.value == pytest.approx(np.mean([one.value for one in singles]))
    assert row.gap == pytest.approx(np.mean([one.gap for one in singles]))
    bounds = interval(theta)
    assert (row.low, row.high) == pytest.approx((bounds.low, bounds.high))
    assert row.n_positive is None


def test_images_of_unknown_value_are_in_no_rest_but_have_one():
    targets, scores, units, columns = make_study(2)
    sex = columns["sex"].copy()
    sex[::3] = None
    rows = compare_subgroups(targets, scores, FINDINGS, {"sex": sex}, units, plan=PLAN)

    def value(mask):
        return auroc(np.where(mask, targets[:, 0], np.nan), scores["a"][:, 0])

    female, male, missing = sex == "F", sex == "M", np.arange(len(sex)) % 3 == 0
    for level, mask, rest in (("F", female, male), ("M", male, female), ("missing", missing, female | male)):
        row = row_of(rows, model="a", finding="effusion", level=level)
        assert row.gap == pytest.approx(value(mask) - value(rest), abs=1e-12)


def test_too_few_images_or_patients_give_a_row_that_says_so():
    targets, scores, units, columns = make_study(3)
    lateral = columns["projection"] == "lateral"
    positive = np.flatnonzero(lateral & (targets[:, 0] == 1))
    columns["projection"][positive[9:]] = "PA"  # 9 positive images are left
    rows = compare_subgroups(targets, scores, FINDINGS, {"projection": columns["projection"]}, units, plan=PLAN)
    row = row_of(rows, model="a", finding="effusion", level="lateral")
    patients = len(np.unique(units.of_image[positive[:9]]))
    assert row.note == f"Too few with the finding: 9 images of {patients} patients, 10 of each are needed."
    assert np.isnan([row.value, row.low, row.high, row.gap, row.gap_low, row.gap_high, row.p]).all()
    assert (row.n_positive, row.undefined) == (9, 0)
    macro, edema = (row_of(rows, model="a", finding=name, level="lateral") for name in (MACRO, "edema"))
    assert macro.note == "Without effusion."
    assert (macro.value, macro.gap) == (edema.value, edema.gap)


def test_many_images_of_few_patients_are_too_few():
    rng = np.random.default_rng(0)
    targets = np.tile([1.0, 0.0], 60)[:, None]
    site = np.repeat(["x", "y"], 60).astype(object)
    few = Units(np.r_[np.zeros(60, dtype=int), np.arange(1, 61)], 61)
    for units, patients in ((few, None), (Units(np.arange(120), 120), few.of_image)):
        scores = {"a": rng.random((120, 1))}
        rows = compare_subgroups(targets, scores, ["effusion"], {"site": site}, units, plan=PLAN, patients=patients)
        x, y = (row_of(rows, finding="effusion", level=level) for level in "xy")
        assert x.note == "Too few with the finding: 30 images of 1 patient, 10 of each are needed."
        assert x.n_patients == 1
        assert np.isfinite([y.value, y.low, y.high]).all()
        assert np.isnan([y.gap, y.p]).all()
        assert y.note == f"No gap. In the rest: {x.note}"
        macro = row_of(rows, finding=MACRO, level="y")
        assert np.isnan(macro.value)
        assert macro.note == "No finding has enough images in the level and in the rest."


@pytest.mark.parametrize("method", ["percentile", "basic", "bca"])
def test_a_column_of_one_level_has_no_rest(method):
    targets, scores, units, _ = make_study(4)
    plan = SubgroupPlan(n_resamples=120, seed=5, method=method)
    rows = compare_subgroups(targets, scores, FINDINGS, {"site": np.full(len(targets), "x")}, units, plan=plan)
    row = row_of(rows, model="a", finding="edema", level="x")
    assert row.value == pytest.approx(auroc(targets[:, 1], scores["a"][:, 1]), abs=1e-12)
    assert row.low < row.value < row.high
    assert np.isnan([row.gap, row.gap_low, row.gap_high, row.p]).all()
    assert "In the rest: Too few with the finding: 0 images of 0 patients" in row.note


def test_files_of_several_seeds_are_combined_inside_each_redraw():
    targets, scores, units, columns = make_study(5)
    stack = {"both": np.stack([scores["a"], scores["b"]])}
    single = compare_subgroups(targets, scores, FINDINGS, {"sex": columns["sex"]}, units, plan=PLAN)
    rows = compare_subgroups(targets, stack, FINDINGS, {"sex": columns["sex"]}, units, plan=PLAN)
    for finding in (*FINDINGS, MACRO):
        row = row_of(rows, finding=finding, level="F")
        members = [row_of(single, model=name, finding=finding, level="F") for name in "ab"]
        assert row.value == pytest.approx(np.mean([one.value for one in members]))
        assert row.gap == pytest.approx(np.mean([one.gap for one in members]))
        assert min(one.low for one in members) < row.low < row.high < max(one.high for one in members)

    def hierarchical(model, theta, point):
        return combine_seeds(theta, point, hierarchical=True, seed=5, strategy=model)

    plan = SubgroupPlan(n_resamples=120, seed=5, combine=hierarchical)
    wide = compare_subgroups(targets, stack, FINDINGS, {"sex": columns["sex"]}, units, plan=plan)
    ours, theirs = (row_of(one, finding="effusion", level="M") for one in (wide, rows))
    assert ours.value == theirs.value
    assert ours.high - ours.low > theirs.high - theirs.low


def test_any_metric_with_its_thresholds_and_bca_intervals():
    targets, scores, units, columns = make_study(6, patients=80)
    limits = {name: np.array([0.5, 1.0]) for name in scores}
    plan = SubgroupPlan(60, 0, METRICS["sensitivity"], limits, method="bca", confidence_level=0.8)
    rows = compare_subgroups(targets, scores, FINDINGS, {"sex": columns["sex"]}, units, plan=plan)
    row = row_of(rows, model="a", finding="edema", level="M")
    present = (targets[:, 1] == 1) & (columns["sex"] == "M")
    assert row.value == pytest.approx((scores["a"][present, 1] >= 1.0).mean())
    assert row.low < row.value < row.high
    limits["a"] = np.array([0.5, np.nan])  # no threshold could be chosen
    rows = compare_subgroups(targets, scores, FINDINGS, {"sex": columns["sex"]}, units, plan=plan)
    assert row_of(rows, model="a", finding="edema", level="M").note == "Sensitivity is undefined here."
    with pytest.raises(ValueError, match="`thresholds` must be given for 'sensitivity', got none"):
        plan = SubgroupPlan(60, 0, METRICS["sensitivity"])
        compare_subgroups(targets, scores, FINDINGS, columns, units, plan=plan)


def test_rows_do_not_depend_on_the_map():
    targets, scores, units, columns = make_study(7)

    def backwards(function, items):
        items = list(items)
        return [function(item) for item in reversed(items)][::-1]

    plan = SubgroupPlan(n_resamples=150, seed=0)
    once = compare_subgroups(targets, scores, FINDINGS, columns, units, plan=plan)
    again = compare_subgroups(targets, scores, FINDINGS, columns, units, plan=plan, map=backwards)
    assert once == again


@pytest.mark.parametrize("correction", ["bh", "holm", "max_t", "none"])
def test_q_is_p_adjusted_over_the_findings_of_a_column_and_apart_from_the_macro_means(correction):
    targets, scores, units, columns = make_study(9)
    plan = SubgroupPlan(n_resamples=120, seed=5, correction=correction)
    rows = compare_subgroups(targets, scores, FINDINGS, columns, units, plan=plan)
    for column in columns:
        for macro in (False, True):
            # Of two levels each is the other's rest: the same gap twice is one test.
            levels = ["F"] if column == "sex" else ["PA", "AP", "lateral"]
            family = [one for one in rows if (one.column, one.finding == MACRO) == (column, macro)]
            tests = [one for one in family if one.level in levels]
            p, q = (np.array([getattr(one, name) for one in tests]) for name in "pq")
            if correction == "max_t":
                assert (q >= p).all()
            else:
                np.testing.assert_array_equal(q, adjust(p, correction))
            for one in family:
                assert one.level in levels or one.q == row_of(tests, model=one.model, finding=one.finding).q


def test_two_levels_are_worked_out_once():
    targets, scores, units, columns = make_study(10)
    prepared = []

    def counted(*arguments):
        prepared.append(1)
        return METRICS["auroc"].prepare(*arguments)

    plan = SubgroupPlan(n_resamples=10, seed=5, metric=replace(METRICS["auroc"], prepare=counted))
    compare_subgroups(targets, scores, FINDINGS, {"sex": columns["sex"]}, units, plan=plan)
    assert len(prepared) == 2 * len(scores) * len(FINDINGS)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_order_of_files_does_not_change_a_bit(method):
    targets, scores, units, columns = make_study(11, patients=60)
    rng = np.random.default_rng(0)
    stack = np.stack([scores["a"] + 0.3 * rng.normal(size=targets.shape) for _ in range(5)])
    plan = SubgroupPlan(n_resamples=30, seed=5, method=method)
    once, again = (
        compare_subgroups(targets, {"a": one}, FINDINGS, {"sex": columns["sex"]}, units, plan=plan)
        for one in (stack, stack[[3, 1, 4, 0, 2]])
    )
    assert once == again


def test_what_cannot_be_is_refused():
    targets, scores, units, columns = make_study(8)
    for change, sentence in (({"minimum": 0}, "`minimum` must be 1"), ({"n_resamples": 0}, "`n_resamples` must be 1")):
        with pytest.raises(UsageError, match=sentence):
            plan = SubgroupPlan(**{"n_resamples": 10, "seed": 0} | change)
            compare_subgroups(targets, scores, FINDINGS, columns, units, plan=plan)
    with pytest.raises(ValueError, match=r"A column must have the shape .* \[site\]"):
        compare_subgroups(targets, scores, FINDINGS, {"site": np.array(["x"])}, units, plan=PLAN)
    with pytest.raises(ValueError, match=r"`scores` must have the shape"):
        compare_subgroups(targets, {"a": scores["a"][1:]}, FINDINGS, columns, units, plan=PLAN)
    with pytest.raises(ValueError, match=r"`targets` must have the shape \(N, 1\)"):
        compare_subgroups(targets, scores, ["effusion"], columns, units, plan=PLAN)


def test_images_of_one_patient_make_no_number_however_low_the_minimum():
    targets, scores, units, columns = make_study(8)
    one = units.of_image == units.of_image[np.flatnonzero(columns["sex"] == "F")[0]]
    targets[columns["sex"] == "F", 0] = 0
    targets[one, 0] = 1
    plan = SubgroupPlan(n_resamples=120, seed=5, minimum=1)
    rows = compare_subgroups(targets, scores, FINDINGS, {"sex": columns["sex"]}, units, plan=plan)
    row, macro = (row_of(rows, model="a", finding=finding, level="F") for finding in ("effusion", MACRO))
    assert row.note == (
        f"All {one.sum()} images with the finding are of one patient."
        if one.sum() > 1
        else "All 1 image with the finding is of one patient."
    )
    assert np.isnan([row.value, row.low, row.gap, row.p, row.q]).all()
    assert (macro.note, macro.n_findings, row.n_findings) == ("Without effusion.", 1, None)
    brier = replace(plan, metric=METRICS["brier"])
    sure = {name: 1 / (1 + np.exp(-one)) for name, one in scores.items()}
    rows = compare_subgroups(targets, sure, FINDINGS, {"sex": columns["sex"]}, units, plan=brier)
    assert not np.isnan(row_of(rows, model="a", finding="effusion", level="F").p)


@pytest.mark.parametrize("correction", ["bh", "max_t"])
def test_gap_that_many_redraws_do_not_have_has_no_p(correction):
    rng = np.random.default_rng(0)
    site = np.repeat(["x", "y"], 60).astype(object)
    targets = np.zeros((120, 2))
    targets[[0, 1, 60, 61], 0] = 1  # an image is a patient: a level or the rest loses both in a quarter of the redraws
    targets[::2, 1] = 1
    scores = {"a": targets + rng.normal(size=(120, 2)) * np.where(site == "x", 0.1, 2.0)[:, None]}
    plan = SubgroupPlan(n_resamples=400, seed=5, minimum=2, correction=correction)
    rows = compare_subgroups(targets, scores, FINDINGS, {"site": site}, Units(np.arange(120), 120), plan=plan)
    rare, frequent = (row_of(rows, finding=finding, level="x") for finding in FINDINGS)
    assert rare.gap_low <= rare.gap <= rare.gap_high
    assert np.isnan([rare.p, rare.q]).all()
    assert rare.note == "No p and no q: over 20 % of the redraws are undefined."
    assert frequent.p == frequent.q < 0.05
