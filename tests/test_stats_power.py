"""Sample sizes by formula, against numbers worked by hand and against simulated studies."""

import json
import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from typer.testing import CliRunner

from cxrdist.cli.main import app, run
from cxrdist.errors import UsageError
from cxrdist.stats.auroc import auroc
from cxrdist.stats.delong import delong_test
from cxrdist.stats.power import auroc_variance, patients_needed, smallest_detectable_difference

PLAN = {"auc": 0.8, "prevalence": 0.05}


def test_variance_of_an_exponential_auroc_is_that_worked_by_hand():
    # AUROC 0.75: Q1 = 0.75 / 1.25 = 0.6 and Q2 = 2 x 0.5625 / 1.75 = 9 / 14.
    by_hand = (0.1875 + 9 * (0.6 - 0.5625) + 19 * (9 / 14 - 0.5625)) / 200
    assert auroc_variance(0.75, 10, 20, "exponential") == pytest.approx(by_hand, rel=1e-14)


@pytest.mark.parametrize("auc", [0.5, 0.8, 0.97])
def test_variance_of_a_binormal_auroc_uses_the_bivariate_normal_distribution(auc):
    bound = norm.ppf(auc)
    both = multivariate_normal(cov=[[1, 0.5], [0.5, 1]]).cdf([bound, bound])
    expected = (auc * (1 - auc) + (9 + 19) * (both - auc**2)) / 200
    assert auroc_variance(auc, 10, 20) == pytest.approx(expected, rel=1e-4)
    # Chance level: the null variance of the Mann-Whitney statistic, (m + n + 1) / (12 m n), for any distribution.
    for scores in ("binormal", "exponential"):
        assert auroc_variance(0.5, 10, 20, scores) == pytest.approx(31 / 2400, rel=1e-12)


def test_difference_is_what_its_own_standard_error_detects():
    plan = smallest_detectable_difference(**PLAN, n_patients=2800)
    first, second = (auroc_variance(auc, 140, 2660) for auc in (0.8, 0.8 + plan.difference))
    error = math.sqrt(first + second - 2 * 0.5 * math.sqrt(first * second))
    assert plan.standard_error == pytest.approx(error, rel=1e-12)
    assert plan.difference / error == pytest.approx(1.959964 + 0.841621, abs=1e-6)


@pytest.mark.parametrize("patients", [400, 2800, 30_001])
def test_patients_needed_for_a_difference_are_those_that_detect_it(patients):
    shape = {
        "images_per_patient": 1.7,
        "correlation": 0.6,
        "within_patient": 0.4,
        "power": 0.9,
        "scores": "exponential",
    }
    plan = smallest_detectable_difference(**PLAN, **shape, n_patients=patients)
    back = patients_needed(**PLAN, **shape, difference=plan.difference * (1 + 1e-9))
    assert back.n_patients == patients


def test_everything_moves_the_difference_the_way_it_must():
    def found(**changes):
        given = {**PLAN, "n_patients": 2800, "images_per_patient": 2, "within_patient": 0.5, **changes}
        return smallest_detectable_difference(**given).difference

    assert found(n_patients=5000) < found()
    assert found(correlation=0.8) < found() < found(correlation=0)
    assert found(prevalence=0.2) < found()
    assert found(alpha=0.01) > found()
    assert found(power=0.9) > found()
    assert found(auc=0.9) < found()
    assert found(scores="exponential") > found()
    assert found(within_patient=0) < found() < found(within_patient=1)
    # Images that tell nothing new are as good as one image per patient, nearly: a pair is only worked out twice.
    assert found(within_patient=1) == pytest.approx(found(images_per_patient=1), rel=0.01)


def make_scores(rng, aurocs, positive, images):
    """Return (2, N) binormal scores of two models, correlated 0.5 with each other and within patients."""
    mix = np.linalg.cholesky([[1, 0.5], [0.5, 1]])
    patient = np.repeat(mix @ rng.normal(size=(2, len(positive))), images, axis=1)
    image = mix @ rng.normal(size=patient.shape)
    return np.sqrt(0.5) * (patient + image) + np.sqrt(2) * norm.ppf(aurocs)[:, None] * np.repeat(positive, images)


def detected_share(*, studies, patients, prevalence, images, seed):
    """Return how often a clustered test finds the difference said to be detected four times in five."""
    print(f"{studies} studies of seed {seed}")
    rng = np.random.default_rng(seed)
    positive = np.arange(patients) < round(prevalence * patients)
    targets, clusters = np.repeat(positive, images).astype(float), np.repeat(np.arange(patients), images)
    pilot = [[auroc(targets, row) for row in make_scores(rng, [0.8, 0.8], positive, images)] for _ in range(studies)]
    plan = smallest_detectable_difference(
        auc=0.8,
        prevalence=prevalence,
        n_patients=patients,
        images_per_patient=images,
        correlation=float(np.corrcoef(np.transpose(pilot))[0, 1]),
        within_patient=0.5,
    )
    found = 0
    for _ in range(studies):
        scores = make_scores(rng, [0.8, 0.8 + plan.difference], positive, images)
        found += delong_test(targets, scores[1], scores[0], clusters).p < 0.05
    return found / studies


def test_detected_share_of_simulated_clustered_studies_is_near_the_power():
    assert 0.72 < detected_share(studies=250, patients=200, prevalence=0.3, images=2, seed=0) < 0.90


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "prevalence", "images"), [(600, 0.2, 2), (600, 0.2, 1), (1500, 0.05, 2)])
def test_detected_share_is_the_power_over_thousands_of_studies(patients, prevalence, images):
    share = detected_share(studies=3000, patients=patients, prevalence=prevalence, images=images, seed=1)
    # The stated intra-patient correlation is that of scores; of ranks it is a little less, which errs on the safe side.
    assert 0.78 < share < 0.87 if images > 1 else 0.78 < share < 0.83


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"auc": 0.4}, r"`auc` must be in \[0.5, 1\), got 0.4"),
        ({"auc": 1.0}, r"`auc` must be in \[0.5, 1\), got 1"),
        ({"auc": math.nan}, r"`auc` must be .*, got nan"),
        ({"prevalence": 0.0}, r"`prevalence` must be in \(0, 1\), got 0"),
        ({"prevalence": 5.0}, r"`prevalence` must be in \(0, 1\), got 5"),
        ({"images_per_patient": 0.5}, "`images_per_patient` must be 1 or more"),
        ({"images_per_patient": math.inf}, "`images_per_patient` must be 1 or more"),
        ({"correlation": 1.0}, r"`correlation` must be in \[0, 1\), got 1"),
        ({"correlation": -0.1}, r"`correlation` must be in \[0, 1\), got -0.1"),
        ({"within_patient": 1.1}, r"`within_patient` must be in \[0, 1\], got 1.1"),
        ({"alpha": 0.0}, r"`alpha` must be in \(0, 1\), got 0"),
        ({"power": 0.01}, "`power` must be above `alpha` and below 1, got 0.01"),
        ({"power": 1.0}, "`power` must be above `alpha` and below 1, got 1"),
        ({"scores": "normal"}, "`scores` must be one of binormal, exponential, got 'normal'"),
    ],
)
def test_values_that_cannot_be_are_named(change, sentence):
    with pytest.raises(UsageError, match=sentence):
        smallest_detectable_difference(**PLAN | {"n_patients": 1000} | change)
    with pytest.raises(UsageError, match=sentence):
        patients_needed(**PLAN | {"difference": 0.05} | change)


@pytest.mark.parametrize("patients", [0, -5, 1, 2.5, math.nan, math.inf, 10**12, True])
def test_patients_must_be_a_number_that_can_be(patients):
    with pytest.raises(UsageError, match="`n_patients` must be a whole number from 2"):
        smallest_detectable_difference(**PLAN, n_patients=patients)


def test_samples_that_can_show_nothing_are_named():
    with pytest.raises(
        UsageError, match=r"must hold an image with and one without the finding, got 0.5 with it among 10"
    ):
        smallest_detectable_difference(**PLAN, n_patients=10)
    with pytest.raises(UsageError, match=r"got none above 0.95 with 60 patients"):
        smallest_detectable_difference(auc=0.95, prevalence=0.05, n_patients=60)
    with pytest.raises(UsageError, match=r"`difference` must be in \(0, 0.2\], .*, got 0.3"):
        patients_needed(**PLAN, difference=0.3)
    with pytest.raises(UsageError, match="must be detectable with 1,000,000,000 patients, got 1e-09"):
        patients_needed(**PLAN, difference=1e-9)


def test_few_patients_with_the_finding_are_warned_of():
    assert smallest_detectable_difference(auc=0.7, prevalence=0.05, n_patients=190).notes()
    assert smallest_detectable_difference(auc=0.7, prevalence=0.95, n_patients=190).notes()
    assert not smallest_detectable_difference(auc=0.7, prevalence=0.05, n_patients=210).notes()


def test_command_prints_the_sentence_for_the_application():
    result = CliRunner().invoke(app, ["power", "--auc", ".8", "--prevalence", ".05", "--patients", "2800"])
    assert result.exit_code == 0, result.output
    plan = smallest_detectable_difference(**PLAN, n_patients=2800)
    assert result.stdout.strip() == plan.sentence()
    assert "2,800 patients (2,800 images, 140 of them with the finding)" in result.stdout
    assert f"a difference in AUROC of {plan.difference:.4f}" in result.stdout
    assert "power of 80 %" in result.stdout


def test_command_answers_how_many_patients_in_json():
    result = CliRunner().invoke(app, ["power", "--auc", ".8", "--prevalence", ".05", "--difference", ".05", "--json"])
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)
    assert tree["n_patients"] == patients_needed(**PLAN, difference=0.05).n_patients
    assert tree["sentence"].startswith(f"A test sample of {tree['n_patients']:,} patients")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "One of `--patients` and `--difference` must be given, got neither."),
        (["--patients", "100", "--difference", "0.1"], "must be given, got both."),
        (["--patients", "many"], "Invalid value for '--patients'"),
        (["--patients", "-3"], "`--patients` must be a whole number from 2 to 1,000,000,000, got -3."),
        (["--patients", "1000", "--power", "2"], "`--power` must be above `--alpha` and below 1, got 2."),
    ],
)
def test_command_refuses_in_a_sentence_with_exit_code_two(options, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        run(["power", "--auc", "0.8", "--prevalence", "0.05", *options])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert sentence in error
    assert "Traceback" not in error
