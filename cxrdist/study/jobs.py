"""A job: one training of a study or sweep, as it travels to the machines that run it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cxrdist.config import Tree
from cxrdist.study.resources import TrialResources

Identity = tuple[str, str, str]
"""Kind, name and key of a job."""


@dataclass(frozen=True)
class Job:
    """One training of a study, or the test of a finished cell on other datasets."""

    kind: Literal["stage", "cell", "external", "trial"]
    method: Literal["train", "pretrain", "external"]
    name: str
    """Readable: the stage's name, or `cell_name`, followed by ``--external`` where other datasets are asked."""
    key: str
    folder: Path
    """Its run folder."""
    tree: Tree
    """Its resolved configuration."""
    needs: tuple[Identity, ...] = ()
    """The jobs that must be done before it."""
    strategy: str = ""
    dataset: str = ""
    variant: str = ""
    """Empty in a study without variants."""
    seed: int = 0
    resources: TrialResources = field(default_factory=TrialResources)
    """What its trial holds; no part of the key, as it changes no result."""

    @property
    def identity(self) -> Identity:
        """Return what tells it from every other job of its study; a key alone does not (see `cxrdist.study.plan`)."""
        return self.kind, self.name, self.key
