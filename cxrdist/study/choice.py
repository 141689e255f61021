"""Which cells of a study are run now: patterns over their names."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cxrdist.errors import UsageError
from cxrdist.study.jobs import Job
from cxrdist.study.plan import Plan


@dataclass(frozen=True)
class Chosen:
    """Cells by their names: ``dinov2--*``, ``*--vindr_cxr--*``, ``random--nih14--seed0``."""

    only: tuple[str, ...] = ()
    """Patterns as a shell has them, of which one must match; none is all."""

    leave_out: tuple[str, ...] = ()
    """Patterns of which none may match."""

    def of(self, plan: Plan) -> list[Job]:
        """Return the chosen cells and all that they need, in the plan's order; what needs a chosen cell is chosen too.

        Raises:
            UsageError: If a pattern matches no cell, or no cell is left.
        """
        if self == ALL:
            return list(plan.jobs)
        names = [job.name for job in plan.cells]
        for option, patterns in (("--only", self.only), ("--except", self.leave_out)):
            for pattern in patterns:
                if not any(_matches(name, [pattern]) for name in names):
                    raise UsageError(
                        f"A pattern of `{option}` must match a cell, got {pattern!r}. Names are like {names[0]!r}; "
                        "`cxrdist study status` lists them."
                    )
        chosen = {
            job.identity
            for job in plan.cells
            if (not self.only or _matches(job.name, self.only)) and not _matches(job.name, self.leave_out)
        }
        if not chosen:
            raise UsageError("`--only` and `--except` must leave a cell, got none that both let through.")
        for job in plan.jobs:  # what is done with a cell's model afterwards
            if job.kind not in ("stage", "cell") and chosen.issuperset(job.needs):
                chosen.add(job.identity)
        for job in reversed(plan.jobs):  # a job stands after those it needs
            if job.identity in chosen:
                chosen.update(job.needs)
        return [job for job in plan.jobs if job.identity in chosen]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


ALL = Chosen()
