import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrdist.errors import UsageError
from cxrdist.stats.rates import RATES, rate_at
from cxrdist.stats.threshold import Rule, choose_threshold, operating_point, parse_rule, youden_threshold

LEVELS = st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
IMAGES = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, np.nan]), st.sampled_from([-3.0, 0.0, 0.2, 0.5, 0.5 + 1e-16, 0.9, 7.0])),
    min_size=1,
    max_size=25,
)


def rates_of(targets, scores, name):
    """Return name -> rate at every observed score of a labelled image, descending."""
    return {t: rate_at(name, targets, scores, t) for t in sorted(set(scores[~np.isnan(targets)]), reverse=True)}


@settings(max_examples=120, deadline=None)
@given(IMAGES, LEVELS)
def test_a_threshold_is_the_one_its_rule_says(images, level):
    targets, scores = (np.array(column) for column in zip(*images, strict=True))
    chosen = {rule: choose_threshold(targets, scores, rule) for rule in ("youden", "f1")}
    chosen |= {kind: choose_threshold(targets, scores, f"{kind}={level}") for kind in ("sensitivity", "specificity")}
    if not ((targets == 1).any() and (targets == 0).any()):
        assert all(np.isnan(t) for t in chosen.values())
        return
    sensitivity, specificity, f1 = (rates_of(targets, scores, name) for name in ("sensitivity", "specificity", "f1"))
    gain = {t: round(sensitivity[t] + specificity[t], 12) for t in sensitivity}
    assert chosen["youden"] == max(gain, key=lambda t: (gain[t], t))
    assert chosen["f1"] == max(f1, key=lambda t: (f1[t], t))
    assert chosen["sensitivity"] == max(t for t, rate in sensitivity.items() if rate >= level)
    reaching = [t for t, rate in specificity.items() if rate >= level]
    assert chosen["specificity"] == (min(reaching) if reaching else np.inf)


def test_nine_of_ten_reaches_nine_tenths():
    for n in range(1, 60):
        for k in range(1, n + 1):
            positives = np.r_[np.ones(k), np.zeros(n - k)]
            targets, scores = np.r_[np.ones(n), np.zeros(n)], np.r_[positives, 1 - positives]
            assert choose_threshold(targets, scores, Rule("sensitivity", k / n)) == 1.0
            assert choose_threshold(targets, scores, Rule("specificity", k / n)) == 1.0
            if n > 20:
                break


def test_where_the_highest_score_is_a_false_call_full_specificity_calls_nothing():
    targets, scores = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    assert choose_threshold(targets, scores, "specificity=1") == np.inf
    assert choose_threshold(targets, scores, "sensitivity=1") == 0.5


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("youden", Rule("youden")),
        (" f1 ", Rule("f1")),
        ("sensitivity=0.9", Rule("sensitivity", 0.9)),
        ("specificity = 1", Rule("specificity", 1.0)),
    ],
)
def test_rules_are_read(text, rule):
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("yuden", "must be one of youden, f1, sensitivity=X, specificity=X, got 'yuden'. Did you mean 'youden'?"),
        ("", "must be one of"),
        ("sensitivity", r"must name a rate in \(0, 1\], got 'sensitivity'. Write for example sensitivity=0.9"),
        ("sensitivity=", "must name a rate"),
        ("sensitivity=90", "must name a rate"),
        ("specificity=0", "must name a rate"),
        ("specificity=nan", "must name a rate"),
        ("specificity=-0.5", "must name a rate"),
        ("specificity=0.9=1", "must name a rate"),
        ("youden=0.5", "must stand alone"),
    ],
)
def test_nonsense_is_no_rule(text, sentence):
    with pytest.raises(UsageError, match=sentence.replace("?", r"\?")):
        parse_rule(text)
    with pytest.raises(UsageError):
        choose_threshold(np.array([0.0, 1.0]), np.array([0.0, 1.0]), text)


def test_a_score_that_is_no_number_has_no_threshold():
    with pytest.raises(ValueError, match="`scores` must be numbers"):
        youden_threshold(np.array([0.0, 1.0]), np.array([0.0, np.nan]))


def test_an_operating_point_has_the_rates_of_the_metrics():
    rng = np.random.default_rng(2)
    targets, scores = rng.choice([0.0, 1.0, np.nan], 80), rng.random(80)
    for threshold in (-1.0, 0.3, 0.8, 2.0):
        point = operating_point(targets, scores, threshold)
        for rate in RATES:
            assert getattr(point, rate) == pytest.approx(rate_at(rate, targets, scores, threshold), abs=0, nan_ok=True)


def test_a_labelled_score_that_is_no_number_is_neither_called_nor_not():
    with pytest.raises(ValueError, match="`scores` must be numbers, got 1 NaN"):
        operating_point(np.array([0, 1, 1]), np.array([0.1, np.nan, 0.9]), 0.5)
    masked = operating_point(np.array([0, np.nan, 1]), np.array([0.1, np.nan, 0.9]), 0.5)
    assert (masked.true_positive, masked.true_negative) == (1, 1)
