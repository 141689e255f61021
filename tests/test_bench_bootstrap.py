"""`bench bootstrap` compares equals: same predictions, same redraws, same values.  No time is tested."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxrdist.bench.bootstrap import BootstrapOptions, _PlainLoop, bench_bootstrap, greatest_difference, make_predictions
from cxrdist.cli.main import run

SMALL = BootstrapOptions(images=500, findings=3, models=2, patients=70, redraws=20, plain_redraws=2, rounds=3)


def test_both_sides_give_the_same_values():
    result = bench_bootstrap(SMALL, shown=False)
    assert result.difference < 1e-12
    assert result.rounds == 3
    assert result.ratio.low <= result.ratio.median <= result.ratio.high
    assert result.memory_mib is None or result.memory_mib >= 0


def test_the_plain_loop_draws_the_same_patients_with_all_their_images():
    targets, scores, units = make_predictions(SMALL)
    plain = _PlainLoop(targets, scores, units, roc_auc_score)
    weights = units.draw([3], 7)[units.of_image, 0]
    assert np.array_equal(np.bincount(plain.draw(7, 3), minlength=SMALL.images), weights)


def test_a_value_that_one_side_lacks_is_a_difference():
    values = np.array([0.5, np.nan, 0.25])
    assert greatest_difference(values, values) == 0
    assert greatest_difference(values, np.array([0.5, np.nan, 0.5])) == 0.25
    assert greatest_difference(values, np.array([0.5, 0.5, 0.25])) == np.inf


def test_predictions_have_the_sizes_asked_for():
    targets, scores, units = make_predictions(SMALL)
    assert targets.shape == (500, 3)
    assert [matrix.shape for matrix in scores] == [(500, 3)] * 2
    assert (len(np.unique(units.of_image)), units.n) == (70, 70)
    assert all(0.5 < roc_auc_score(targets[:, k], scores[0][:, k]) < 1 for k in range(3))


def test_the_command_prints_one_json_object(capsys):
    sizes = ["--images", "300", "--findings", "2", "--models", "1", "--patients", "50", "--redraws", "10"]
    with pytest.raises(SystemExit, match="0"):
        run(["bench", "bootstrap", *sizes, "--rounds", "1", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["options"]["patients"] == 50
    assert printed["difference"] < 1e-12
    assert printed["machine"]["numba"]


def test_more_patients_than_images_are_a_sentence(capsys):
    with pytest.raises(SystemExit, match="2"):
        run(["bench", "bootstrap", "--images", "50", "--patients", "60"])
    assert "`--patients` must be at most `--images` 50, got 60" in capsys.readouterr().err
