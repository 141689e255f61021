"""Rules that stop trials, against Ray Tune's, and after a kill."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from cxrdist.study.sweep.schedulers import Asha, GoOn, MedianStopping, Rule

Report = tuple[str, int, float]


@dataclass(frozen=True)
class Named:
    """What Ray's rules ask of a trial."""

    trial_id: str


def reports(seed: int, *, trials: int = 24, looks: int = 9, every: int = 10) -> list[Report]:
    """Return the reports of trials of different worth that go at different speeds, in the order they come."""
    rng = np.random.default_rng(seed)
    worth = rng.normal(0.7, 0.08, trials)
    found = []
    for trial in range(trials):
        at = rng.uniform(0, 3)
        for look in range(1, looks + 1):
            at += rng.exponential(1.0)
            # Rounded, so that ties come up too.
            value = round(float(np.clip(worth[trial] * (1 - 0.5 / look) + rng.normal(0, 0.03), 0, 1)), 2)
            found.append((at, (f"t{trial}", look * every, value)))
    return [report for _, report in sorted(found)]


def decide(rule: Rule, given: list[Report]) -> list[tuple[Report, bool]]:
    """Return each report that is made, and the decision on it: a stopped trial makes no more."""
    stopped, made = set(), []
    for report in given:
        if report[0] not in stopped:
            made.append((report, rule.reported(*report)))
            if not made[-1][1]:
                stopped.add(report[0])
    return made


def asha() -> Asha:
    return Asha(grace=10, reduction=3, steps=100)


def median_stopping() -> MedianStopping:
    return MedianStopping(grace=20, fewest=3)


@pytest.mark.parametrize("seed", range(20))
def test_asha_decides_as_ray_tune_does(seed):
    bracket = pytest.importorskip("ray.tune.schedulers.async_hyperband")._Bracket(10, 100, 3, 0)

    class Theirs:
        def reported(self, trial: str, step: int, value: float) -> bool:
            return bracket.on_result(Named(trial), step, value) == "CONTINUE"

    made = decide(asha(), reports(seed))
    assert made == decide(Theirs(), reports(seed))
    assert 0 < sum(not goes_on for _, goes_on in made) < 24


@pytest.mark.parametrize("seed", range(20))
def test_median_stopping_decides_as_ray_tune_does(seed):
    schedulers = pytest.importorskip("ray.tune.schedulers")
    rule = schedulers.MedianStoppingRule("step", "value", "max", grace_period=20, min_samples_required=3)

    class Controller:
        def get_live_trials(self) -> list:
            return []

    class Theirs:
        def reported(self, trial: str, step: int, value: float) -> bool:
            return rule.on_trial_result(Controller(), Named(trial), {"step": step, "value": value}) == "CONTINUE"

    made = decide(median_stopping(), reports(seed))
    assert made == decide(Theirs(), reports(seed))
    assert sum(not goes_on for _, goes_on in made) > 0


@pytest.mark.parametrize("build", [asha, median_stopping])
@pytest.mark.parametrize("seed", range(5))
def test_rule_that_is_given_its_reports_again_goes_on_as_if_nothing_had_been(build: Callable[[], Rule], seed):
    whole = decide(build(), reports(seed))
    for kept in (0, 1, len(whole) // 3, len(whole) - 1):
        again = build()
        assert [again.reported(*report) for report, _ in whole[:kept]] == [goes_on for _, goes_on in whole[:kept]]
        assert [again.reported(*report) for report, _ in whole[kept:]] == [goes_on for _, goes_on in whole[kept:]]


def test_first_trial_at_a_rung_goes_on_and_a_worse_one_after_it_does_not():
    rule = asha()
    assert sorted(rule.rungs) == [10, 30, 90]
    assert rule.reported("a", 10, 0.6)
    assert not rule.reported("b", 10, 0.5)
    assert rule.reported("c", 10, 0.6)
    assert rule.reported("a", 20, 0.1)  # between rungs nothing is decided


def test_validation_that_passes_over_a_rung_counts_at_the_highest_it_reached():
    rule = asha()
    assert rule.reported("a", 40, 0.7)
    assert rule.rungs == {10: {}, 30: {"a": 0.7}, 90: {}}


def test_median_stopping_waits_for_others():
    rule = median_stopping()
    for trial in ("a", "b"):
        assert rule.reported(trial, 20, 0.8)
    assert rule.reported("c", 20, 0.1)  # only two others
    assert not rule.reported("d", 20, 0.1)
    assert rule.reported("e", 10, 0.1)  # before the grace ends


def test_every_trial_goes_on_without_a_rule():
    assert all(goes_on for _, goes_on in decide(GoOn(), reports(0)))
