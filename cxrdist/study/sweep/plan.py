"""From a sweep's values to its trials: jobs with the keys by which the ledger and the journal know them.

A key is that of a study's cell: a hash of the resolved configuration and of the shards' manifests.  So a trial of
another form of the sweep in the same folder is not taken for this one's, and an equal one is not run again, whatever
its number.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxrdist.config import Tree, override
from cxrdist.datasets.shard_format import manifest_sha256
from cxrdist.errors import UsageError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.models.locate import absolute_weights
from cxrdist.study.jobs import Job
from cxrdist.study.plan import KEY_LENGTH, job_key
from cxrdist.study.sweep.config import SweepConfig
from cxrdist.study.sweep.draws import Values


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    strategy: str
    number: int
    """Of its draw; members of a population keep it over the generations."""
    values: Values
    job: Job
    generation: int = 0
    donor: Job | None = None
    """The job whose checkpoint it starts from."""
    from_step: int = 0
    """Steps that its donor had made."""
    to_step: int = 0
    """Steps that are made when it ends."""


@dataclass(frozen=True)
class Planner:
    """Makes the jobs of one sweep, with run folders below `out`."""

    sweep: SweepConfig
    out: Path
    manifests: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, sweep: SweepConfig, out: Path) -> "Planner":
        """Return the planner of `sweep`.

        Raises:
            UserError: If a shard folder is missing or unfinished.
        """
        return cls(sweep, out.resolve(), [manifest_sha256(folder) for folder in sweep.base.folders])

    def trial(
        self,
        strategy: str,
        number: int,
        values: Values,
        *,
        generation: int | None = None,
        donor: "Trial | None" = None,
        stop_at: int | None = None,
    ) -> Trial:
        """Return one trial.

        Args:
            strategy: Its form of the run.
            number: Of its draw.
            values: By dotted name.
            generation: In a population; None elsewhere.
            donor: Whose checkpoint it starts from.
            stop_at: Step that it ends at, before the run's last.

        Raises:
            UsageError: If the values do not fit together.
        """
        name = trial_name(strategy, number, generation)
        config = resolved(override(self.sweep.forms[strategy], values), where=name, stop_at=stop_at)
        key = job_key("train", config, None, self.manifests)
        if donor is not None:
            key = hashlib.sha256(f"{key} from {donor.job.key}".encode()).hexdigest()[:KEY_LENGTH]
        job = Job(
            "trial",
            "train",
            name,
            key,
            self.out / "trials" / name,
            config.tree(),
            strategy=strategy,
            seed=config.seed,
            resources=self.sweep.resources.of_trial(),
        )
        return Trial(
            strategy,
            number,
            values,
            job,
            generation or 0,
            donor.job if donor else None,
            donor.to_step if donor else 0,
            stop_at or config.train.steps,
        )

    def trials(self, drawn: Sequence[Values]) -> list[Trial]:
        """Return a trial for each of `drawn` and each strategy; strategies take turns, so that they advance together.

        Raises:
            UsageError: If values do not fit together; all are told.
        """
        found, wrong = [], []
        for number, values in enumerate(drawn):
            for strategy in self.sweep.forms:
                try:
                    found.append(self.trial(strategy, number, values))
                except UsageError as error:
                    wrong.append(str(error))
        if wrong:
            raise UsageError("\n".join(wrong))
        return found


def trial_name(strategy: str, number: int, generation: int | None = None) -> str:
    """Return ``<strategy>--<0007>``, in a population with ``--gen<2>``."""
    return f"{strategy}--{number:04d}" + ("" if generation is None else f"--gen{generation}")


def resolved(tree: Mapping[str, Any], *, where: str, stop_at: int | None = None) -> FinetuneConfig:
    """Return the whole configuration, with paths that mean the same on every machine that has the folders.

    Raises:
        UsageError: If it is none.
    """
    whole: Tree = override(tree, {} if stop_at is None else {"train.stop_at": stop_at})
    config = FinetuneConfig.build(whole, where=where)
    shards = [folder.resolve() for folder in config.folders]
    config = config.model_copy(update={"shards": shards[0] if len(shards) == 1 else shards})
    if config.model.weights is not None:
        model = config.model.model_copy(update={"weights": absolute_weights(config.model.weights)})
        config = config.model_copy(update={"model": model})
    if config.train.deepspeed is not None:
        train = config.train.model_copy(update={"deepspeed": config.train.deepspeed.absolute()})
        config = config.model_copy(update={"train": train})
    return config
