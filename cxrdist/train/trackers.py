"""Experiment trackers: MLflow and Weights & Biases get what TensorBoard gets.

Both write under the run folder and use no network, unless their own settings (``MLFLOW_TRACKING_URI``,
``WANDB_MODE``) say otherwise.  A tracker is a copy for people to look at: when it fails, training goes on without it.
"""

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from cxrdist.config import Tree, read_yaml
from cxrdist.errors import UsageError
from cxrdist.log import get_logger
from cxrdist.models.locate import is_timm_name
from cxrdist.train.run_folder import TRACKERS, RunFolder, flatten, write_json

log = get_logger(__name__)

PROJECT = "cxrdist"
"""Name of the project (W&B) and of the experiment (MLflow)."""
PATHS = ("shards", "watch.shards", "model.weights", "train.deepspeed")
"""Values of a configuration that are paths: they tell of people and machines, and a tracker gets their last part."""
MLFLOW_PARAM_CHARS = 500
"""Length that every MLflow server takes for the value of a parameter."""
QUIET = {
    "mlflow": {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # A server that does not answer must not hold up the training: the default is 7 retries of 2 minutes.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    },
    "wandb": {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"},
}
"""Environment of the libraries, read when they are imported; what a user has set stays."""


CREDENTIALS = re.compile(r"(?<=//)[^\s/]*@|(?<=\S)\?\S+")
"""User, password and options in an address."""


class Tracker(Protocol):
    """One run in one tracker."""

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Add the values of a step, named by their tags."""

    def close(self, *, finished: bool) -> None:
        """End the run, as finished or as one that was stopped."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the libraries of the trackers are there; imports none of them.

    Raises:
        UsageError: If one is not.
    """
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a plain folder of that name, as W&B makes one, has no origin
            raise UsageError(
                f"`train.trackers` must name what is installed, got {name!r}. "
                f"Install it with `pip install 'cxrdist[{name}]'`, or take it out."
            )


class Trackers:
    """All trackers of a run.  One that fails is named in a warning, once, and left out from then on."""

    def __init__(self, folder: RunFolder, names: Sequence[str]) -> None:
        """Start or go on with the run in each tracker of `names`.

        Raises:
            UsageError: If the library of one is not installed.
        """
        check_trackers(names)
        self.open: dict[str, Tracker] = {}
        for name in names:
            try:
                self.open[name] = START[name](folder)
            except Exception as error:  # whatever a tracker's server or library can raise
                self._warn(name, error)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Give every tracker the values of a step."""
        for name, tracker in list(self.open.items()):
            try:
                tracker.log(step, scalars)
            except Exception as error:  # as above
                del self.open[name]
                self._warn(name, error)

    def close(self, *, finished: bool) -> None:
        """End the run in every tracker."""
        for name, tracker in self.open.items():
            try:
                tracker.close(finished=finished)
            except Exception as error:  # as above
                self._warn(name, error)
        self.open = {}

    def _warn(self, name: str, error: Exception) -> None:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        reason = CREDENTIALS.sub("", reason)
        log.warning("Training goes on without the tracker %s, which failed: %s", name, reason[:200])


class MlflowRun:
    """A run in MLflow's store, through its client; no user or host is told.

    Beside defaults in the environment, no setting of MLflow's that is the process's is touched: not the tracking URI,
    not the experiment, not the active run.
    """

    def __init__(self, folder: RunFolder) -> None:
        _be_quiet("mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            uri = (folder.path / "mlruns").resolve().as_uri()
            # Its store of plain files needs no database and bears a network file system, but has to be asked for.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient  # noqa: PLC0415 - an extra, and slow to import
        from mlflow.entities import Metric, Param  # noqa: PLC0415

        self.metric = Metric
        self.client = MlflowClient(tracking_uri=uri)
        known = _read_runs(folder).get("mlflow")
        if known is not None and known.get("store") == _fingerprint(uri):
            self.run_id = known["run_id"]
            self.client.update_run(self.run_id, status="RUNNING")
            return
        experiment = self.client.get_experiment_by_name(PROJECT)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        self.run_id = self.client.create_run(experiment_id, run_name=_run_name(folder)).info.run_id
        # Once: MLflow refuses to change a parameter, and some of a run's may differ when it is resumed.
        params = [Param(name, str(value)[:MLFLOW_PARAM_CHARS]) for name, value in flatten(_config(folder)).items()]
        for start in range(0, len(params), 100):  # the most that one call takes
            self.client.log_batch(self.run_id, params=params[start : start + 100])
        _remember(folder, mlflow={"store": _fingerprint(uri), "run_id": self.run_id})

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Add the values of a step; one call to the store."""
        now = round(time.time() * 1000)
        metrics = [self.metric(name, value, now, step) for name, value in scalars.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        """End the run."""
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


class WandbRun:
    """A run of Weights & Biases, in a folder that `wandb sync` sends when the user wants it sent."""

    def __init__(self, folder: RunFolder) -> None:
        _be_quiet("wandb")
        import wandb  # noqa: PLC0415 - an extra, and slow to import

        known = _read_runs(folder).get("wandb")
        run_id = known["run_id"] if known else secrets.token_hex(4)
        # No console, code, host or user goes into the run's files: they may be sent to a server later.
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="",
            silent=True,
            symlink=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,  # takes seconds; `environment.json` has the versions
        )
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=_run_name(folder),
            id=run_id,
            resume=None if os.environ["WANDB_MODE"] == "offline" else "allow",  # offline, the id alone decides
            dir=str(folder.path),
            config=_config(folder),
            settings=settings,
            reinit="create_new",
        )
        # An axis of our own: W&B's must not go back, and a resumed run repeats the steps after its checkpoint.
        self.run.define_metric("*", step_metric="step")
        _remember(folder, wandb={"run_id": run_id})

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Add the values of a step."""
        self.run.log({**scalars, "step": step})

    def close(self, *, finished: bool) -> None:
        """End the run and its helper's hold on the files."""
        self.run.finish(exit_code=0 if finished else 1)


START: dict[str, Callable[[RunFolder], Tracker]] = {"mlflow": MlflowRun, "wandb": WandbRun}


def _be_quiet(name: str) -> None:
    for variable, value in QUIET[name].items():
        os.environ.setdefault(variable, value)


def _run_name(folder: RunFolder) -> str:
    return folder.path.resolve().name


def _config(folder: RunFolder) -> Tree:
    """Return the resolved configuration that stands in the run folder, with the last part of each path."""
    tree: Tree = _without_paths(read_yaml(folder.config)) if folder.config.is_file() else {}
    return tree


def _without_paths(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(one, f"{name}.{key}" if name else str(key)) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one, name) for one in value]
    if isinstance(value, str) and (Path(value).is_absolute() or (name in PATHS and not is_timm_name(value))):
        return Path(value).name
    return value


def _fingerprint(uri: str) -> str:
    """Return a hash of where `uri` leads to, without the user, password and options that it may hold."""
    parts = urlsplit(uri)
    place = (parts.scheme, parts.netloc.rpartition("@")[2], parts.path)
    return hashlib.sha256(json.dumps(place).encode()).hexdigest()


def _read_runs(folder: RunFolder) -> dict[str, Any]:
    path: Path = folder.path / TRACKERS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _remember(folder: RunFolder, **run: dict[str, str]) -> None:
    write_json(folder.path / TRACKERS, _read_runs(folder) | run)
