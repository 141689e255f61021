"""Sweeps as files: spaces, draws, what may be searched, and how trials are known again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import finetune_tree, make_shards

from cxrdist.cli.main import run
from cxrdist.config import override, read_yaml, shipped, write_yaml
from cxrdist.errors import UsageError, UserError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.study.folders import make_way
from cxrdist.study.ledger import claim, claimed_by
from cxrdist.study.sweep.config import SweepConfig
from cxrdist.study.sweep.draws import draw
from cxrdist.study.sweep.history import History
from cxrdist.study.sweep.plan import Planner
from cxrdist.study.sweep.results import Findings, Row, check
from cxrdist.study.sweep.run import expected_trials, plan_sweep, write_best
from cxrdist.study.sweep.space import Space

LR = {"optim.lr": {"loguniform": [1e-5, 1e-2]}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("sweep"), patients=20)


def tree(shards: Path | str = "-", **changes: Any) -> dict[str, Any]:
    base = {"title": "Tiny", "run": finetune_tree(Path(shards)), "trials": 4, "search": changes.pop("search", LR)}
    return override(base, {name.replace("__", "."): value for name, value in changes.items()})


def sweep(shards: Path | str = "-", **changes: Any) -> SweepConfig:
    return SweepConfig.build(tree(shards, **changes), where="sweep.yaml")


def refusals(**changes: Any) -> list[str]:
    with pytest.raises(UsageError) as caught:
        sweep(**changes)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "given",
    [
        {"uniform": [0, 0.3]},
        {"loguniform": [1e-5, 1e-2]},
        {"int": [2, 5]},
        {"logint": [8, 64]},
        {"choice": ["a", None]},
    ],
)
def test_draws_fill_their_space_and_stay_inside(given):
    space = Space.model_validate(given)
    drawn = [space.at(share) for share in np.linspace(0, 1, 2000, endpoint=False)]
    if space.is_listed:
        assert [drawn.count(value) for value in space.values] == [1000, 1000]
        return
    low, high = space.values
    assert min(drawn) == low and max(drawn) <= high and drawn == sorted(drawn)
    assert max(drawn) > 0.99 * high
    middle = drawn[1000]
    assert middle == pytest.approx(np.sqrt(low * high) if space.is_log else (low + high) / 2, rel=0.2)
    assert space.is_whole == all(isinstance(value, int) for value in drawn)
    assert set(drawn) == set(range(low, high + 1)) if space.is_whole and not space.is_log else True


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"uniform": [2, 1]}, "must have its ends in rising order, got [2.0, 1.0]."),
        ({"loguniform": [0, 1]}, "must have positive ends, got [0.0, 1.0]."),
        ({"choice": [1, 1]}, "must list each value once, got [1, 1]."),
        (
            {"choice": [1], "grid": [1]},
            "must be one of uniform, loguniform, int, logint, choice, grid, got choice and grid. Set",
        ),
        ({"logunifrom": [1, 2]}, "is unknown. Did you mean 'loguniform'?"),
    ],
)
def test_space_that_is_none_is_refused_in_one_sentence(given, sentence):
    (line,) = refusals(search={"optim.lr": given})
    assert line.startswith("`search.optim.lr") and sentence in line and line.endswith("[in sweep.yaml]")


def test_draw_depends_on_the_seed_and_its_number_alone():
    few, many = draw(sweep(trials=3)), draw(sweep(trials=9))
    assert many[:3] == few
    beside = draw(sweep(trials=3, search=LR | {"optim.weight_decay": {"uniform": [0, 0.3]}}))
    assert [one["optim.lr"] for one in beside] == [one["optim.lr"] for one in few]
    assert draw(sweep(trials=3, seed=1)) != few
    assert len({one["optim.lr"] for one in many}) == 9


def test_grids_multiply_the_draws_and_equal_draws_are_one():
    grids = {"optim.weight_decay": {"grid": [0, 0.05]}, "loss.label_smoothing": {"grid": [0, 0.1, 0.2]}}
    both = draw(sweep(trials=2, search=LR | grids))
    assert len(both) == 12 and len({one["optim.lr"] for one in both}) == 2
    assert len(draw(sweep(trials=1, search=grids))) == 6
    assert "`trials` must be 1 where every space is a grid" in refusals(trials=2, search=grids)[0]
    assert len(draw(sweep(trials=50, search={"optim.weight_decay": {"choice": [0, 0.05]}}))) == 2


@pytest.mark.parametrize(
    ("name", "space", "reason"),
    [
        ("seed", {"int": [0, 9]}, "is chance and no setting"),
        ("shards", {"choice": ["a", "b"]}, "values cannot be compared"),
        ("findings", {"choice": [["effusion"]]}, "values cannot be compared"),
        ("labels.uncertain", {"choice": ["ones", "zeros"]}, "values cannot be compared"),
        ("labels", {"choice": [{}]}, "values cannot be compared"),
        ("input.projection", {"choice": ["PA", "AP"]}, "values cannot be compared"),
        ("train.steps", {"int": [1, 9]}, "budgets differ"),
        ("train.keep_last", {"int": [1, 9]}, "changes no result"),
    ],
)
def test_what_would_make_values_incomparable_is_not_searched(name, space, reason):
    (line,) = refusals(search={name: space})
    assert line.startswith(f"A sweep must not vary `{name}`, which ") and reason in line


def test_everything_that_is_wrong_is_told_at_once():
    lines = refusals(
        search={"optim.lrr": {"uniform": [1, 2]}, "optim.betas": {"choice": [[0.9, 2.0]]}, "seed": {"int": [0, 1]}},
        strategies={"a": {"set": {"train.steps": 9, "optim.lrr": 1}}, "b": {"set": {"model.backbone": 3}}},
    )
    told = "\n".join(lines)
    for part in (
        "`optim.lrr` is unknown. Did you mean 'lr'?",
        "A sweep must not vary `seed`",
        "A strategy must not set `train.steps`",
        "A strategy must not set `optim.lrr`, which is searched.",
        "`model.backbone` must be text, got 3. [in sweep.yaml, strategies.b]",
    ):
        assert part in told, told
    assert "must be two numbers in [0, 1)" in "\n".join(refusals(search={"optim.betas": {"choice": [[0.9, 2.0]]}}))
    assert "`optim.lr` must be greater than 0" in refusals(search={"optim.lr": {"uniform": [-1, 1]}})[0]
    assert "`run.shards` is required, got nothing. [in sweep.yaml]" in refusals(run__shards=None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scheduler": {"name": "asha", "grace": 9}}, "`grace` must be at most the 8 steps of a trial, got 9."),
        ({"scheduler": {"name": "hyperband"}}, "`scheduler` must have a 'name' of 'none', 'asha', 'median', 'pbt'"),
        ({"scheduler": {"name": "pbt", "every": 3}}, "`every` must be a multiple of `train.evaluate_every` (4)"),
        ({"scheduler": {"name": "pbt"}, "trials": 3}, "`trials` must be at least 4 with `scheduler` pbt"),
        (
            {"scheduler": {"name": "pbt"}, "search": {"model.backbone": {"choice": ["a", "b"]}}},
            "A sweep with `scheduler` pbt must vary what a training can change on its way, got `model.backbone`.",
        ),
        (
            {"scheduler": {"name": "pbt"}, "algorithm": {"name": "optuna"}},
            "`scheduler` pbt must have `algorithm` random, got optuna",
        ),
        ({"algorithm": {"name": "optuna"}, "search": {"optim.lr": {"grid": [1, 2]}}, "trials": 1}, "must have no grid"),
    ],
)
def test_rule_that_does_not_fit_is_refused(changes, sentence):
    assert sentence in refusals(**changes)[0]


def test_setting_and_debug_size_change_a_space_or_take_it_out(tmp_path):
    file = tmp_path / "sweep.yaml"
    given = tree(strategies={"a": {}, "b": {}})
    given["search"] = LR | {"optim.weight_decay": {"choice": [0, 0.05]}}
    given["debug"] = {"trials": 2, "strategies": {"b": None}, "search": {"optim.weight_decay": None}}
    write_yaml(given, file)
    plain = SweepConfig.read(file, ["search.optim.lr={choice: [1.0e-3, 2.0e-3]}"])
    assert plain.search["optim.lr"].values == [1e-3, 2e-3] and list(plain.forms) == ["a", "b"]
    small = SweepConfig.read(file, debug=True)
    assert (small.trials, list(small.search), list(small.forms)) == (2, ["optim.lr"], ["a"])
    assert SweepConfig.build(plain.tree(), where="again") == plain


def test_every_shipped_sweep_is_one_and_says_so_in_its_debug_size():
    files = sorted((shipped("launch") / "sweeps").glob("*.yaml"))
    assert len(files) >= 2
    for file in files:
        assert draw(SweepConfig.read(file))
        assert "debug" not in read_yaml(file) or draw(SweepConfig.read(file, debug=True))


def test_strategies_take_turns_with_the_same_draws(shards):
    config = sweep(shards, strategies={"a": {}, "b": {"set": {"class_weights": "none"}}}, trials=2)
    trials = plan_sweep(config, Path("out"))
    assert [trial.job.name for trial in trials] == ["a--0000", "b--0000", "a--0001", "b--0001"]
    assert trials[0].values == trials[1].values != trials[2].values
    assert len({trial.job.key for trial in trials}) == 4
    assert expected_trials(config) == 4


def test_trial_is_known_by_its_content(shards, tmp_path):
    """Another space or number changes nothing for the trial of the same values, and its run folder follows it."""
    (tmp_path / "trials").mkdir()
    values = {"optim.weight_decay": {"grid": [0, 0.05]}}
    before = plan_sweep(sweep(shards, search=values, trials=1), tmp_path)
    for trial in before:
        claim(trial.job)
    turned = plan_sweep(sweep(shards, search={"optim.weight_decay": {"grid": [0.1, 0.05]}}, trials=1), tmp_path)
    assert turned[1].job.key == before[1].job.key and turned[0].job.key != before[0].job.key
    make_way([trial.job for trial in turned], tmp_path, renamed=True)
    assert claimed_by(turned[1].job.folder) == turned[1].job.key and not turned[0].job.folder.exists()
    swapped = plan_sweep(sweep(shards, search={"optim.weight_decay": {"grid": [0.05, 0]}}, trials=1), tmp_path)
    make_way([trial.job for trial in swapped], tmp_path, renamed=True)
    assert [claimed_by(trial.job.folder) for trial in swapped] == [before[1].job.key, before[0].job.key]


def test_folder_comes_back_whatever_its_strategy_is_called(shards, tmp_path):
    first = plan_sweep(sweep(shards, strategies={"x-moved": {}}, trials=1), tmp_path)[0].job
    other = plan_sweep(sweep(shards, strategies={"x-moved": {}}, trials=1, seed=1), tmp_path)[0].job
    claim(first)
    for job in (other, first):
        make_way([job], tmp_path, renamed=True)
    assert claimed_by(first.folder) == first.key


def test_paths_of_a_sweep_that_is_submitted_are_the_clusters(tmp_path, capsys):
    write_yaml(tree("shards/a"), tmp_path / "sweep.yaml")
    with pytest.raises(SystemExit) as ended:
        run(["sweep", str(tmp_path / "sweep.yaml"), "--address", "http://127.0.0.1:9"])
    assert (
        ended.value.code == 2
        and "got `--out` 'runs/sweep', `run.shards` 'shards/a'. Set them" in capsys.readouterr().err
    )


def test_missing_shards_and_weights_are_a_sentence(shards, tmp_path):
    with pytest.raises(UserError):
        plan_sweep(sweep(tmp_path / "none"), tmp_path)
    with pytest.raises(UserError, match=r"file of a sweep must be there before it starts, got none .* there, or set"):
        plan_sweep(sweep(shards, run__model__weights="none.safetensors"), tmp_path)


def rows(config: SweepConfig, out: Path, scores: list[float]) -> Findings:
    """Return a sweep whose trials have ended with `scores`; 0 is a failure."""
    trials = Planner.of(config, out).trials(draw(config))
    found = [
        Row(trial, "done" if score else "failed", ((4, score),) if score else (), 8, 64)
        for trial, score in zip(trials, scores, strict=True)
    ]
    return Findings(config, tuple(found))


def test_best_is_a_run_file_and_the_strategies_of_a_study(shards, tmp_path):
    config = sweep(shards, strategies={"a": {"set": {"class_weights": "none"}}, "b": {}}, trials=2)
    found = rows(config, tmp_path, [0.6, 0.8, 0.7, 0.8])
    write_best(found, tmp_path)
    best = FinetuneConfig.read(tmp_path / "best" / "a.yaml")
    assert best.optim.lr == draw(config)[1]["optim.lr"] and best.class_weights == "none"
    assert (
        FinetuneConfig.read(tmp_path / "best" / "b.yaml").optim.lr == draw(config)[0]["optim.lr"]
    )  # the first of equals
    study = read_yaml(tmp_path / "best.yaml")
    assert study["strategies"]["a"]["set"] == {"class_weights": "none", "optim.lr": best.optim.lr}
    write_best(rows(config, tmp_path, [0, 0.8, 0, 0.8]), tmp_path)
    assert not (tmp_path / "best" / "a.yaml").exists()


def test_unequal_budgets_and_an_opened_test_split_fail_their_checks(shards, tmp_path):
    config = sweep(shards, strategies={"a": {}, "b": {}}, trials=1)
    found = rows(config, tmp_path, [0.6, 0.8])
    assert all(guard.passed for guard in check(found, tmp_path))
    more = Row(found.rows[1].trial, "done", ((4, 0.8),), 16, 64)
    (tmp_path / "trials" / "a--0000").mkdir(parents=True)
    (tmp_path / "trials" / "a--0000" / "test_accesses.jsonl").touch()
    failed = [guard.name for guard in check(Findings(config, (found.rows[0], more)), tmp_path) if not guard.passed]
    assert failed == ["The test split is not opened", "Every strategy has trained about as many steps, within 10%"]
    assert History().best(found.rows[0].trial) is None
