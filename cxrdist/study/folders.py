"""Run folders of studies and sweeps that change: what another job has left is moved aside, and comes back with it."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from cxrdist.config import read_yaml
from cxrdist.study.jobs import Job
from cxrdist.study.ledger import claim, claimed_by, is_complete
from cxrdist.train.run_folder import changes


def make_way(jobs: Iterable[Job], out: Path, *, renamed: bool = False) -> None:
    """Bring the run folder of each job to its place, and move what is in the way aside; nothing is thrown away.

    What belongs to whom is told by the key; the configuration can differ besides, where shards have moved under a run
    that has not ended, which cannot go on then.

    Args:
        jobs: Whose folders are needed.
        out: The folder of the study or the sweep.
        renamed: A folder of another name comes back too: the trials of a sweep have numbers for names, and a changed
            search gives a number to other values.
    """
    # Another dataset's predictions lie in their cell's folder, and each of their files says what it is of.
    jobs = [job for job in jobs if job.kind != "external"]
    for job in jobs:
        if job.folder.is_dir() and not _fits(job, job.folder):
            move_aside(job.folder, job.name, out)
    aside = out / "superseded"
    kept = sorted(aside.iterdir()) if aside.is_dir() else []
    keys = {folder: claimed_by(folder) for folder in kept}
    for job in jobs:
        if job.folder.exists():
            continue
        mine = [folder for folder in kept if keys[folder] == job.key]
        own = [folder for folder in mine if folder.name.startswith(f"{job.name}-{job.key}")]
        others = [folder for folder in mine if folder not in own] if renamed else []
        found = next((folder for folder in own + others if _fits(job, folder)), None)
        if found is not None:
            job.folder.parent.mkdir(parents=True, exist_ok=True)
            found.rename(job.folder)
            kept.remove(found)
            if found in others:
                claim(job)


def move_aside(folder: Path, name: str, out: Path) -> None:
    """Move a run folder to ``superseded/<name>-<key>``, with a number behind it if there is one already."""
    aside = out / "superseded"
    aside.mkdir(exist_ok=True)
    stem = f"{name}-{claimed_by(folder)}"
    places = (aside / f"{stem}{suffix}" for suffix in chain([""], (f"-{n}" for n in count(1))))
    folder.rename(next(place for place in places if not place.exists()))


def _fits(job: Job, folder: Path) -> bool:
    """Whether `folder` is the job's, and can go on as it is if it has not ended."""
    if claimed_by(folder) != job.key:
        return False
    config = folder / "config.yaml"
    ended = is_complete(replace(job, folder=folder))
    return ended or not config.is_file() or not changes(read_yaml(config), job.tree)
