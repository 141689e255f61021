"""The procedure of Tayebi Arasteh et al. 2024, held number by number to a plain script of it."""

import json

import numpy as np
import pytest
from sklearn.metrics import multilabel_confusion_matrix, roc_curve

from cxrdist.errors import UsageError
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.tayebi2024 import LABEL, METRICS, one_sided_p, replicate

FINDINGS = ("effusion", "edema", "nodule")


def make_study(seed, *, images=90, decimals=2):
    """Return targets (N, K) and scores of two models, with ties."""
    print(f"study of seed {seed}")
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, 3)) < [0.4, 0.3, 0.5]).astype(float)
    scores = {
        name: np.round(1 / (1 + np.exp(-effect * targets - rng.normal(size=targets.shape))), decimals)
        for name, effect in (("ours", 1.2), ("theirs", 0.6))
    }
    return targets, scores


def plain_auroc(targets, scores):
    positive, negative = scores[targets == 1], scores[targets == 0]
    wins = sum(2 * (one > negative).sum() + (one == negative).sum() for one in positive)
    return wins / (2 * len(positive) * len(negative))


def plain_procedure(targets, scores, *, n_resamples, seed):
    """Return (R, K) per metric for one model, written out image by image like the released script."""
    epsilon = 1e-15
    lists = {metric: [] for metric in METRICS}
    for r in range(n_resamples):
        # The documented stream: entropy words (seed, 6 = BOOTSTRAP, redraw).
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 6, r])))
        index_list = rng.integers(0, len(targets), len(targets))
        drawn, called_scores = targets[index_list].astype(int), scores[index_list]
        thresholds = np.zeros(targets.shape[1])
        for k in range(targets.shape[1]):
            fpr, tpr, candidates = roc_curve(drawn[:, k], called_scores[:, k], pos_label=1)
            thresholds[k] = candidates[np.argmax(tpr - fpr)]
        called = (called_scores > thresholds).astype(np.int32)
        row = {metric: [] for metric in METRICS}
        for k, ((tn, fp), (fn, tp)) in enumerate(multilabel_confusion_matrix(drawn, called)):
            row["auroc"].append(plain_auroc(drawn[:, k], called_scores[:, k]))
            row["accuracy"].append((tp + tn) / (tp + tn + fp + fn + epsilon))
            row["sensitivity"].append(tp / (tp + fn + epsilon))
            row["specificity"].append(tn / (tn + fp + epsilon))
            row["f1"].append(2 * tp / (2 * tp + fn + fp + epsilon))
        for metric in METRICS:
            lists[metric].append(row[metric])
    return {metric: np.array(rows) for metric, rows in lists.items()}


def plain_p(first, second):
    ratio = (len(first) - (first > second).sum()) / len(first)
    if ratio <= 0.05:
        return ratio, 1
    other = (len(first) - (second > first).sum()) / len(first)
    return (other, 2) if other <= 0.05 else (ratio, 0)


@pytest.mark.parametrize(("seed", "decimals"), [(0, 2), (1, 1), (2, 12)])
def test_every_number_is_that_of_a_plain_script_over_the_same_index_lists(seed, decimals):
    targets, scores = make_study(seed, decimals=decimals)
    ours = replicate(targets, scores, FINDINGS, n_resamples=80, seed=seed)
    plain = {name: plain_procedure(targets, one, n_resamples=80, seed=seed) for name, one in scores.items()}
    for name in scores:
        for metric in METRICS:
            table = plain[name][metric]
            for k, finding in enumerate(FINDINGS):
                value = ours.value(name, finding, metric)
                assert value.mean == pytest.approx(table[:, k].mean(), abs=1e-13)
                assert value.standard_deviation == pytest.approx(table[:, k].std(), abs=1e-13)
            # The label mean: redraws and labels pooled, so its deviation is mostly the distance between labels.
            pooled = ours.value(name, MACRO, metric)
            assert pooled.mean == pytest.approx(table.mean(), abs=1e-13)
            assert pooled.standard_deviation == pytest.approx(table.std(), abs=1e-13)
            assert pooled.undefined == 0
    columns = [np.column_stack([plain[name]["auroc"], plain[name]["auroc"].mean(axis=1)]) for name in scores]
    assert [one.finding for one in ours.verdicts] == [*FINDINGS, MACRO]
    for k, verdict in enumerate(ours.verdicts):
        p, higher = plain_p(columns[0][:, k], columns[1][:, k])
        assert verdict.p == p
        assert verdict.higher == (None, "ours", "theirs")[higher]


def test_numbers_do_not_depend_on_the_map_or_the_order_of_images_with_their_labels():
    targets, scores = make_study(3)
    once = replicate(targets, scores, FINDINGS, n_resamples=150)

    def backwards(function, items):
        items = list(items)
        return [function(item) for item in reversed(items)][::-1]

    assert replicate(targets, scores, FINDINGS, n_resamples=150, map=backwards) == once


@pytest.mark.parametrize(
    ("above", "below", "expected"),
    [
        (100, 0, (0.0, 1)),
        (95, 5, (0.05, 1)),
        (94, 6, (0.06, 0)),
        (0, 100, (0.0, 2)),
        (5, 95, (0.05, 2)),
        (50, 50, (0.5, 0)),
        (94, 0, (0.06, 0)),
        (0, 0, (1.0, 0)),
    ],
)
def test_p_is_one_sided_both_ways_without_a_one_and_ties_count_against(above, below, expected):
    first = np.r_[np.ones(above), np.zeros(100 - above)]
    second = np.r_[np.zeros(above), np.ones(below), np.zeros(100 - above - below)]
    assert one_sided_p(first, second) == expected


def test_the_image_at_the_threshold_is_not_called():
    # Perfectly ranked: Youden's threshold is the lowest positive score, so one of the positives is missed.
    targets = np.r_[np.ones(10), np.zeros(10)][:, None]
    scores = np.r_[np.linspace(0.6, 0.9, 10), np.linspace(0.1, 0.4, 10)][:, None]
    result = replicate(targets, {"a": scores}, ["effusion"], n_resamples=50)
    assert result.value("a", "effusion").mean == 1.0
    assert result.value("a", "effusion", "specificity").mean == pytest.approx(1.0)
    assert 0.7 < result.value("a", "effusion", "sensitivity").mean < 0.95


def test_scores_that_tell_nothing_call_nothing():
    targets = np.tile([1.0, 0.0], 20)[:, None]
    result = replicate(targets, {"a": np.full((40, 1), 0.5)}, ["effusion"], n_resamples=20)
    assert result.value("a", "effusion").mean == 0.5
    assert result.value("a", "effusion", "sensitivity").mean == 0.0
    assert result.value("a", "effusion", "specificity").mean == pytest.approx(1.0)
    assert result.value("a", "effusion", "f1").mean == 0.0


def test_masked_labels_take_no_part_and_lost_classes_are_counted():
    targets, scores = make_study(4, images=30)
    targets[:, 1] = 0
    targets[[3, 4], 1] = 1
    targets[5:15, 0] = np.nan
    result = replicate(targets, scores, FINDINGS, n_resamples=100, seed=9)
    lost = 0
    for r in range(100):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([9, 6, r])))
        lost += not np.isin([3, 4], rng.integers(0, 30, 30)).any()
    assert 3 < lost < 30
    for metric in METRICS:
        assert result.value("ours", "edema", metric).undefined == lost
        assert result.value("theirs", MACRO, metric).undefined == lost
        assert result.value("ours", "effusion", metric).undefined == 0
        assert np.isfinite(result.value("ours", MACRO, metric).mean)
    changed = {name: one.copy() for name, one in scores.items()}
    changed["ours"][5:15, 0] = 0.99
    assert replicate(targets, changed, FINDINGS, n_resamples=100, seed=9) == result


def test_every_way_out_names_the_convention():
    targets, scores = make_study(5)
    targets[:, 2] = 0
    result = replicate(targets, scores, FINDINGS, n_resamples=40)
    assert result.left_out == ("nodule",)
    assert result.text().startswith(LABEL)
    assert "not the statistics of cxrdist" in LABEL
    assert "Left out, with one class only: nodule." in result.text()
    tree = json.loads(result.to_json())
    assert tree["convention"] == "tayebi2024"
    assert tree["label"] == LABEL
    assert all(row["convention"] == "tayebi2024" for row in result.rows() + result.difference_rows())
    assert len(tree["values"]) == 2 * 5 * 3
    assert [row["finding"] for row in tree["differences"]] == ["effusion", "edema", MACRO]


def test_p_of_zero_is_told_as_below_one_redraw():
    targets, _ = make_study(6)
    scores = {"a": 0.5 + 0.4 * targets, "b": 0.5 - 0.4 * targets}
    text = replicate(targets, scores, FINDINGS, n_resamples=40, pairs=[("b", "a")]).text()
    assert "b against a, macro: P < 0.025, a significantly higher" in text


def test_what_cannot_be_worked_out_is_refused():
    targets, scores = make_study(7)
    with pytest.raises(UsageError, match="`n_resamples` must be 1 or more, got 0"):
        replicate(targets, scores, FINDINGS, n_resamples=0)
    with pytest.raises(UsageError, match="must have images with and without it"):
        replicate(np.zeros_like(targets), scores, FINDINGS)
    with pytest.raises(ValueError, match=r"`scores` must have the shape \(90, 3\), got \(90, 2\) \[ours\]"):
        replicate(targets, {"ours": scores["ours"][:, :2]}, FINDINGS)
    with pytest.raises(ValueError, match=r"`targets` must have the shape \(N, 2\)"):
        replicate(targets, scores, FINDINGS[:2])
