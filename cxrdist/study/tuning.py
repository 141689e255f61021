"""Runs jobs as trials of Ray Tune on the connected cluster: one Tune run for all of them."""

import logging
import os
import shutil
import signal
import threading
import time
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.trainable.function_trainable import wrap_function

from cxrdist.errors import UserError
from cxrdist.study.feeder import Broken, Feeder
from cxrdist.study.gang import Work, run_worker
from cxrdist.study.graph import Source
from cxrdist.study.ledger import Ledger, writing
from cxrdist.study.resources import Resources
from cxrdist.study.trial import Shared, run_trial
from cxrdist.study.watching import Watch

WITHOUT_END = 10**9
SETTINGS = {
    # What a trial is and how it went stands in its run folder and in the ledger; Tune's copies of it are read by nobody
    # and cost a second a trial once there are hundreds.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(WITHOUT_END),
    # A cluster that is too small for a trial is told by the feeder.
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": str(WITHOUT_END),
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER": str(WITHOUT_END),
    # A trial that lost a machine and cannot end would hold what it has on others for ten minutes.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "30",
    # A lost attempt is no error yet; what is one stands in the ledger.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


def run_jobs(source: Source, ledger: Ledger, resources: Resources, watch: Watch, *, work: Work = run_worker) -> None:
    """Run the jobs of `source` until it has none left, each by `work` on its workers; failed ones are in the ledger.

    Raises:
        UserError: If the ledger or its folder cannot be written.
    """
    feeder = Feeder(source, ledger, resources, watch)
    os.environ.update(SETTINGS | {"TUNE_MAX_PENDING_TRIALS_PG": str(feeder.pending)})
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it lists every lost attempt as an error at the end
    folder, name = ledger.path.parent / "ray", f"run-{time.time_ns()}"
    tuner = tune.Tuner(
        _trainable(Shared(ledger, resources, work)),
        tune_config=tune.TuneConfig(
            num_samples=WITHOUT_END,
            search_alg=feeder,
            scheduler=Withdrawing(feeder),
            # A process of its own for each trial, whose name a dashboard can show.
            reuse_actors=False,
            trial_name_creator=lambda trial: title(trial.config),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=str(folder), verbose=0, callbacks=[Placed(feeder), Stoppable()]
        ),
    )
    try:
        with writing(ledger.path.parent):
            tuner.fit()
    except Broken:
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if feeder.broken:
        raise UserError(feeder.broken)


def place(params: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return what a trial holds from its start to its end."""
    held = params["job"].resources
    bundle = {"CPU": held.cpus_per_worker}
    if held.gpus_per_worker:
        bundle["GPU"] = held.gpus_per_worker
    # The first bundle is the trial's own process, which only waits; empty, so that on a small machine it takes no core.
    return tune.PlacementGroupFactory([{}, *[bundle] * params["workers"]], strategy=held.placement.upper())


def title(params: dict[str, Any]) -> str:
    """Return what Tune and Ray's dashboard call a trial: its job, and which attempt if it is not the first."""
    return str(params["name"]) + (f"--attempt{params['attempt']}" if params["attempt"] > 1 else "")


def _trainable(shared: Shared) -> type:
    """Return what Tune starts for each trial."""
    unnamed: Any = wrap_function(tune.with_resources(tune.with_parameters(run_trial, shared=shared), place))

    class Named(unnamed):
        def __repr__(self) -> str:  # Ray asks for it once, when the process is there
            return title(self.config)

    return Named


class Placed(tune.Callback):
    """Tells the feeder that a trial has its place."""

    def __init__(self, feeder: Feeder) -> None:
        self._feeder = feeder

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Called by Tune."""
        self._feeder.started(trial.trial_id)


class Stoppable(tune.Callback):
    """Gives SIGUSR1 back the handler that it had: with Tune's own a run that is stopped ends like one that is done."""

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGUSR1)

    def setup(self, *args: object, **info: object) -> None:
        """Called by Tune once it has taken the signal."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._handler)


class Withdrawing(FIFOScheduler):
    """First in, first out; a trial whose place is gone before it started is taken back, as Ray would wait for ever."""

    def __init__(self, feeder: Feeder) -> None:
        super().__init__()
        self._feeder = feeder

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Called by Tune at each of its steps."""
        for trial in list(tune_controller.get_live_trials()):
            if trial.status == Trial.PENDING and self._feeder.impossible(trial.trial_id):
                tune_controller.stop_trial(trial)
                _unstage(trial, tune_controller)
        return super().choose_trial_to_run(tune_controller)


def _unstage(trial: Trial, wrapped: Any) -> None:
    """Make Tune forget that a trial waits, which it does not itself when one is stopped before it started.

    It would keep the next process that ends for the one it thinks still waits, with all that its trial held.
    """
    controller = wrapped._tune_controller
    if trial in controller._staged_trials:
        controller._unstage_trial_with_resources(trial)
