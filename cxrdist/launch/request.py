"""What is to be launched, and on which machines."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal

from cxrdist.config import Tree, read_tree
from cxrdist.data.order import Batching
from cxrdist.errors import UsageError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.study.config import StudyConfig
from cxrdist.study.room import no_room, places
from cxrdist.study.sweep.config import SweepConfig
from cxrdist.train.run_folder import flatten

if TYPE_CHECKING:
    from cxrdist.study.resources import TrialResources

Kind = Literal["train", "pretrain", "study", "sweep"]
AnyConfig = FinetuneConfig | PretrainConfig | StudyConfig | SweepConfig
CONFIGS: dict[Kind, type[AnyConfig]] = {
    "train": FinetuneConfig,
    "pretrain": PretrainConfig,
    "study": StudyConfig,
    "sweep": SweepConfig,
}

BESIDE_LOADING = 2
"""CPU cores of a rank besides those that load images: its own, and one that writes checkpoints."""
MACHINES_COME_S = 1800
"""How long a training waits for machines that are still to come: a cloud boots them, a queue grants them."""
NAME_LENGTH = 40
"""A SLURM queue and a Kubernetes object show or allow little more."""
TIMES = tuple(
    re.compile(form)
    for form in (
        r"(?P<minutes>\d+)(?::(?P<seconds>[0-5]\d))?",
        r"(?P<hours>\d+):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)",
        r"(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>[0-5]\d)(?::(?P<seconds>[0-5]\d))?)?",
    )
)
"""What ``--time`` of sbatch means: https://slurm.schedmd.com/sbatch.html."""


@dataclass(frozen=True)
class Request:
    """One command on so many machines; what a launcher has no use for is empty there."""

    kind: Kind
    file: Path
    """The run's file as the user named it: absolute, or relative to `here`."""
    text: str
    """What stands in it."""
    out: Path
    """The run, study or sweep folder."""
    here: Path
    """The folder, absolute, from which the relative paths of the file lead."""
    bin: Path
    """The folder of the programs `cxrdist`, `torchrun`, `deepspeed` and `ray`."""
    nodes: int
    gpus_per_node: int
    ranks_per_node: int
    cpus_per_node: int
    """Those that the user asks for, or what the run has use for: `cpus_asked` tells which."""
    options: tuple[str, ...] = ()
    """``--debug`` and ``--set`` with its values, handed on."""
    setup: tuple[str, ...] = ()
    """Lines of shell for each machine, before anything else: ``module load cuda``."""
    time: str | None = None
    """Most that it may take, as SLURM writes it."""
    sbatch: tuple[tuple[str, str], ...] = ()
    """More options of ``sbatch``: (``partition``, ``gpu``)."""
    hosts: tuple[str, ...] = ()
    ssh_user: str | None = None
    ssh_key: str | None = None
    image: str | None = None
    """The container image that has `cxrdist`."""
    claim: str | None = None
    """The PersistentVolumeClaim with shards and runs."""
    mount: str | None = None
    """Where shared storage is seen on the machines."""
    queue: str | None = None
    """The Kueue queue."""
    instance: str | None = None
    region: str | None = None
    project: str | None = None
    nfs: str | None = None
    """SERVER:/PATH of shared storage."""
    relative: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    """Settings of the run that are relative paths, or lists with some: (``shards``, ``runs/a``)."""
    cpus_asked: bool = True
    grows: bool = False
    """Whether it is a study or a sweep that waits for a cluster that grows on demand."""
    target_file: Path | None = None
    """Where the launcher is written, as the user named it; None if that is not known."""

    @property
    def name(self) -> str:
        """Return a name for the job: small letters, digits and single hyphens, begins with a letter."""
        words = re.sub(r"[^a-z0-9]+", "-", self.file.stem.lower()).strip("-")
        return f"cxrdist-{words}"[:NAME_LENGTH].rstrip("-")

    @property
    def ranks(self) -> int:
        """Return how many processes train together on all machines."""
        return self.nodes * self.ranks_per_node

    @property
    def cpus_per_rank(self) -> int:
        """Return the CPU cores of each of them."""
        return max(1, self.cpus_per_node // self.ranks_per_node)

    @property
    def words(self) -> list[str]:
        """Return the words behind `cxrdist`, for processes that a launcher starts."""
        return self.words_for(self.file, self.out)

    @property
    def ray_words(self) -> list[str]:
        """Return the words behind `cxrdist`, for one process on a Ray cluster that is there and starts the others."""
        return self._ray_words(self.file, self.out, "auto")

    def words_for(self, file: Path | str, out: Path | str) -> list[str]:
        """Return `words` with the run's file and folder where they are on other machines."""
        command = ["study", "run"] if self.kind == "study" else [self.kind]
        resume = ["--resume", "auto"] if self.trains else []
        return [*command, str(file), "--out", str(out), *resume, *self.options]

    def ray_words_for(
        self, file: Path | str, out: Path | str, *, address: str = "auto", start: PurePath | None = None
    ) -> list[str]:
        """Return `ray_words` with the run's file and folder, and the cluster, as they are where machines come later.

        Relative paths of the run are made to lead from the folder `start` there, where that is given.
        """
        wait = ["--wait", str(MACHINES_COME_S)] if self.trains else []
        places = (
            []
            if start is None
            else [word for name, path in self.relative for word in ("--set", _set(name, start, path))]
        )
        return [*self._ray_words(file, out, address), *wait, *places]

    def _ray_words(self, file: Path | str, out: Path | str, address: str) -> list[str]:
        words = [*self.words_for(file, out), "--address", address]
        if self.trains:
            words += ["--workers", str(self.ranks), "--cpus-per-worker", str(self.cpus_per_rank)]
            if self.gpus_per_node:
                words += ["--gpus-per-worker", f"{self.gpus_per_node / self.ranks_per_node:g}"]
        return words

    @property
    def trains(self) -> bool:
        """Return whether it is one training."""
        return self.kind in ("train", "pretrain")


def _set(name: str, start: PurePath, value: str | tuple[str, ...]) -> str:
    """Return the setting that makes a relative path, or a list with some, lead from `start`."""
    if isinstance(value, str):
        return f"{name}={start / value}"
    return f"{name}={json.dumps([str(start / path) for path in value])}"


def read_any(file: Path, settings: Sequence[str] = (), *, debug: bool = False) -> tuple[Kind, AnyConfig]:
    """Return what a file describes: a fine-tuning, a pretraining, a study or a sweep.

    Raises:
        UsageError: If it is none of them, or if any name or value in it is wrong; all are listed.
    """
    kind = kind_of(read_tree(file, settings, debug=debug)) or "train"
    return kind, CONFIGS[kind].read(file, settings, debug=debug)


def kind_of(tree: Tree) -> Kind | None:
    """Return what a file's content describes, right or wrong in the particulars; None: nothing of ours."""
    if "strategies" in tree and "datasets" in tree:
        return "study"
    if "search" in tree:
        return "sweep"
    if "method" in tree or isinstance(tree.get("shards"), list):
        return "pretrain"
    return "train" if "shards" in tree else None


def default_cpus(config: AnyConfig) -> int:
    """Return the CPU cores that a rank, or a trial's worker, has use for."""
    if isinstance(config, FinetuneConfig | PretrainConfig):
        return config.input.workers + BESIDE_LOADING
    return math.ceil(config.resources.cpus_per_worker)


def is_grown(config: AnyConfig) -> bool:
    """Return whether it waits for a cluster that grows on demand."""
    return not isinstance(config, FinetuneConfig | PretrainConfig) and config.resources.autoscaling


def seconds_of(time: str) -> int:
    """Return how long a time is that is written as SLURM takes it.

    Raises:
        UsageError: If it is not, or is nothing.
    """
    for form in TIMES:
        if found := form.fullmatch(time):
            days, hours, minutes, seconds = (
                int(found.groupdict().get(part) or 0) for part in ("days", "hours", "minutes", "seconds")
            )
            if total := ((days * 24 + hours) * 60 + minutes) * 60 + seconds:
                return total
            raise UsageError(f"`--time` must be more than nothing, got {time!r}. Example: --time 48:00:00")
    raise UsageError(
        f"`--time` must be MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, got {time!r}. Example: --time 48:00:00"
    )


def holds_gpus(config: AnyConfig) -> bool:
    """Return whether anything of it asks for a GPU; a training takes those that are there."""
    if isinstance(config, FinetuneConfig | PretrainConfig):
        return True
    return any(name.endswith("gpus_per_worker") and value for name, value in flatten(config.tree()).items())


def check_fits(config: AnyConfig, request: Request) -> None:
    """Make sure that the run can be divided among these machines: now, and not once they are booked.

    Raises:
        UsageError: If it cannot.
    """
    if isinstance(config, FinetuneConfig | PretrainConfig):
        if request.cpus_per_node < request.ranks_per_node:
            raise UsageError(
                f"`--cpus-per-node` must be at least one for each rank, got {request.cpus_per_node} for "
                f"{request.ranks_per_node} ranks per node. Raise it, or lower `--ranks-per-node`."
            )
        if 0 < request.gpus_per_node < request.ranks_per_node:
            raise UsageError(
                f"`--ranks-per-node` must be at most one for each GPU, got {request.ranks_per_node} for "
                f"{request.gpus_per_node} GPUs. NCCL refuses two ranks on one GPU: lower it."
            )
        train = config.train
        micro = train.micro_batch_size if isinstance(train.micro_batch_size, int) else None
        Batching.plan(global_batch_size=train.global_batch_size, micro_batch_size=micro, world_size=request.ranks)
        return
    machine = {"CPU": float(request.cpus_per_node), "GPU": float(request.gpus_per_node)}
    held: TrialResources = config.resources
    if request.nodes * places(machine, held) < held.fewest:
        raise UsageError(no_room(config.resources, [machine] * request.nodes))
