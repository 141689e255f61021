"""The beginning of a run: rank 0 takes the folder, and all ranks learn whether there is something to do."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cxrdist.config import Config
from cxrdist.errors import UsageError, UserError
from cxrdist.train.engine import gather
from cxrdist.train.run_folder import Resume, RunFolder
from cxrdist.world import World


@contextmanager
def start(
    folder: RunFolder, config: Config, *, resume: Resume | None, world: World, shards: Sequence[Path], seed: int
) -> Iterator[bool]:
    """Hold `folder` during the block; yield whether a run is to be made or continued there: False if it has ended.

    Only rank 0 looks at the folder, so no rank takes what rank 0 has just written for an earlier run.

    Raises:
        UsageError, UserError: On every rank, what rank 0 met: see `RunFolder.opened`.
    """
    with ExitStack() as held:
        problem: tuple[type[UserError], str] | None = None
        if world.is_main:
            try:
                held.enter_context(folder.opened(config, resume=resume, world=world, shards=shards, seed=seed))
            except UserError as error:
                problem = (UsageError if isinstance(error, UsageError) else UserError, str(error))
            except Exception as error:
                # The others must not wait for what rank 0 will never say.
                gather(((UserError, f"Rank 0 could not begin: {type(error).__name__}."), False))
                raise
        problem, begun = gather((problem, not folder.finished))[0]
        if problem is not None:
            kind, sentence = problem
            raise kind(sentence)
        yield begun
