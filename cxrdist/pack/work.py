"""The work folder: what an interrupted pack left, and who may go on with it."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxrdist.datasets.shard_format import MANIFEST, WORK_FOLDER
from cxrdist.errors import UserError
from cxrdist.log import get_logger
from cxrdist.pack.build import PARTIAL, not_written, write_file
from cxrdist.pack.plan import Plan
from cxrdist.pack.ways_out import refuse_difference

RECIPE = "recipe.json"
LOCK = "lock"

log = get_logger(__name__)


@contextmanager
def work_folder(shards: Path, plan: Plan) -> Iterator[Path]:
    """Enter the work folder of `shards`, made or found; it stays for the next start unless the manifest is written.

    Raises:
        UserError: If the folder is used for something else, by another pack, or by another process right now.
    """
    work = shards / WORK_FOLDER
    if shards.exists() and not shards.is_dir():
        raise UserError(f"`--out` must be a folder, got a file {str(shards)!r}.")
    if shards.is_dir() and not work.is_dir() and not (shards / MANIFEST).exists() and any(shards.iterdir()):
        raise UserError(f"`--out` must be new, empty, or an interrupted pack, got other files [in {str(shards)!r}].")
    try:
        work.mkdir(parents=True, exist_ok=True)
        with (work / LOCK).open("wb") as lock:
            try:
                # The system lets go of the lock when its process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"Only one process may pack into {str(shards)!r}, got a second. Wait for it.") from None
            except OSError:  # some cluster file systems (Lustre without `flock`) know no locks
                log.warning("The file system of %s has no locks: start one pack at a time into it.", shards)
            _refuse_other_recipe(work, shards, plan)
            for rubbish in work.glob(f"*{PARTIAL}"):
                rubbish.unlink(missing_ok=True)
            yield work
    except OSError as error:
        raise not_written(work, error) from None


def remove_work_folder(shards: Path) -> None:
    """Remove what a finished pack no longer needs."""
    shutil.rmtree(shards / WORK_FOLDER, ignore_errors=True)


def _refuse_other_recipe(work: Path, shards: Path, plan: Plan) -> None:
    path = work / RECIPE
    try:
        old = json.loads(path.read_bytes())
    except (OSError, ValueError):
        # Killed before the recipe was written: nothing was built yet.
        write_file(path, json.dumps(plan.recipe(), sort_keys=True).encode(), work)
        return
    refuse_difference(old, json.loads(json.dumps(plan.recipe())), shards)
