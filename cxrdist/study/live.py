"""What a person sees of a study that runs: a table that lives on the terminal, or lines where there is none."""

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from cxrdist.log import Progress as Bar
from cxrdist.log import clock, log_to, progress
from cxrdist.study.jobs import Job
from cxrdist.study.outlook import Outlook, Running, kinds_of
from cxrdist.study.progress import ended_progress
from cxrdist.study.watching import Outcome, Progress, Watch, Watchers

REFRESHES_PER_S = 2
BESTS_SHOWN = 6
"""Datasets whose best cell is told."""
BETWEEN, SHORTEST_NAME, CUT = 2, 12, "..."
COLUMNS = ("job", "try", "workers", "step", "loss", "val AUROC", "img/s", "time")


@contextmanager
def watched(
    title: str,
    *,
    todo: Iterable[Job] = (),
    done: Iterable[Job] = (),
    total: int | None = None,
    shown: bool = True,
    label: str = "study",
) -> Iterator[Watchers]:
    """Watch jobs on the connected cluster during the block: on the terminal, and as Ray metrics.

    Args:
        title: What they are together; the label of the metrics.
        todo: Jobs that will run, as far as they are known.
        done: Those that an earlier run has finished.
        total: How many there are, if there are more than these.
        shown: Whether anything goes to the terminal.
        label: What a line of progress begins with.
    """
    from cxrdist.study.gauges import gauges  # noqa: PLC0415 - imports Ray

    todo, done = list(todo), list(done)
    total = len(todo) + len(done) if total is None else total
    look = drawn(title, todo, done, total, shown=shown, label=label)
    with gauges(title, total=total, done=len(done)) as measured, look as seen:
        yield Watchers([measured, seen])


@contextmanager
def drawn(
    title: str, todo: Sequence[Job], done: Sequence[Job], total: int, *, shown: bool = True, label: str = "study"
) -> Iterator[Watch]:
    """Show jobs during the block: as a table where there is a terminal, else in lines; see `watched`."""
    if shown and lives_here():
        with LiveTable(title, todo=todo, done=done, total=total) as table:
            yield table
        return
    with progress(label, total, unit="jobs" if label == "study" else "trials", shown=shown) as bar:
        bar.skip(len(done))
        yield Lines(bar)


def lives_here() -> bool:
    """Whether standard error is a terminal that can be drawn on."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


class Lines:
    """A line from time to time; a `Watch`."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def started(self, job: Job, workers: int, attempt: int) -> None:
        """Nothing has ended."""

    def progress(self, job: Job, progress: Progress) -> None:
        """Nothing has ended."""

    def ended(self, job: Job, outcome: Outcome, reason: str) -> None:
        """One more; a failure in a line of its own, as the lines of progress pass over some."""
        if outcome == "failed" and self._bar.shown:
            print(f"{job.name} failed: {reason}", file=sys.stderr, flush=True)
        self._bar.advance(note=f"{job.name} {outcome}")


class LiveTable:
    """A table that lives on the terminal during its ``with``, at most a screenful, and leaves one line; a `Watch`."""

    def __init__(
        self, title: str, *, todo: Iterable[Job] = (), done: Iterable[Job] = (), total: int | None = None
    ) -> None:
        """Begin with nothing running; see `watched`."""
        todo, done = list(todo), list(done)
        waiting = kinds_of(todo)
        self.title = title
        self.outlook = Outlook(len(todo) + len(done) if total is None else total, len(done), waiting)
        self.best: dict[str, tuple[float, str]] = {}
        """Validation AUROC of the best cell, and its name, by dataset."""
        for job in done:
            self._compare(job, ended_progress(job))
        self._begun = self.outlook.clock()
        self._lock = threading.Lock()
        self._open = ExitStack()

    def __enter__(self) -> "LiveTable":
        """Take the lower part of the terminal; log lines go on above it."""
        from rich.console import Console  # noqa: PLC0415 - only where it is drawn
        from rich.live import Live  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        console = Console(stderr=True)

        def shown() -> Text:
            lines = self.lines(console.size.width, console.size.height)
            return Text("\n".join(lines), no_wrap=True, overflow="crop")

        live = Live(
            get_renderable=shown,
            console=console,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        with ExitStack() as stack:
            stack.callback(self._say_end)
            terminal = sys.stderr
            stack.enter_context(live)
            stack.enter_context(log_to(sys.stderr, instead_of=terminal))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Give the terminal back, however the block ended."""
        self._open.close()

    def started(self, job: Job, workers: int, attempt: int) -> None:
        """Give it a row."""
        with self._lock:
            self.outlook.started(job, workers, attempt)

    def progress(self, job: Job, progress: Progress) -> None:
        """Bring its row up to date."""
        with self._lock:
            self.outlook.progress(job, progress)
            self._compare(job, progress)

    def ended(self, job: Job, outcome: Outcome, reason: str) -> None:
        """Take its row away, and tell of a failure; not of those that it keeps from starting."""
        with self._lock:
            ran = job.identity in self.outlook.running
            self.outlook.ended(job, outcome, reason)
        if ran and outcome == "failed":
            print(f"{job.name} failed: {reason}", file=sys.stderr)

    def lines(self, width: int, height: int) -> list[str]:
        """Return what is shown now, in so many characters and lines; log lines have the rest."""
        with self._lock:
            now, outlook = self.outlook.clock(), self.outlook
            left = outlook.left_s()
            bests = [f"{name or 'all'} {value:.3f} ({job})" for name, (value, job) in sorted(self.best.items())]
            below = [self._counts()]
            if bests:
                below.append("best validation AUROC so far:")
                below += [f"  {line}" for line in bests[:BESTS_SHOWN]]
            if len(bests) > BESTS_SHOWN:
                below.append(f"  and of {len(bests) - BESTS_SHOWN} more datasets")
            room = height - len(below) - 4
            running = list(outlook.running.values())
            shown = running if len(running) <= room else running[: max(room - 1, 0)]
            if len(shown) < len(running):
                below.insert(0, f"and {len(running) - len(shown)} more that run")
            head = f"{clock(now - self._begun)}, {'?' if left is None else f'about {clock(left)}'} left  {self.title}"
            rows = [_row(one, now) for one in shown]
        return [line[:width] for line in (head, *_table(rows, width), *below)]

    def _counts(self) -> str:
        outlook = self.outlook
        counts = {"queued": outlook.queued, "running": len(outlook.running), "done": outlook.done}
        counts |= {"failed": outlook.failed} | ({"stopped": outlook.stopped} if outlook.stopped else {})
        return ", ".join(f"{count} {state}" for state, count in counts.items())

    def _say_end(self) -> None:
        print(f"study: {self._counts()}, after {clock(self.outlook.clock() - self._begun)}", file=sys.stderr)

    def _compare(self, job: Job, progress: Progress) -> None:
        if job.kind == "cell" and progress.best is not None:
            before = self.best.get(job.dataset)
            if before is None or progress.best > before[0]:
                self.best[job.dataset] = progress.best, job.name


def _row(running: Running, now: float) -> list[str]:
    known = running.progress or Progress("")
    return [
        running.job.name,
        str(running.attempt),
        str(running.workers),
        f"{known.step:,}/{'?' if known.steps is None else f'{known.steps:,}'}" if known.step or known.steps else "-",
        "-" if known.loss is None else f"{known.loss:.4g}",
        "-" if known.value is None else f"{known.value:.3f}",
        "-" if known.images_per_second is None else f"{known.images_per_second:,.0f}",
        clock(now - running.since),
    ]


def _table(rows: list[list[str]], width: int) -> list[str]:
    widths = [max(map(len, cells)) for cells in zip(COLUMNS, *rows, strict=True)]
    # The names give way where the terminal is narrow, not the numbers.
    widths[0] = max(min(widths[0], width - sum(widths[1:]) - BETWEEN * (len(widths) - 1)), SHORTEST_NAME)
    return [
        (" " * BETWEEN).join(
            [_cut(row[0], widths[0]).ljust(widths[0])]
            + [cell.rjust(wide) for cell, wide in zip(row[1:], widths[1:], strict=True)]
        )
        for row in (list(COLUMNS), *rows)
    ]


def _cut(name: str, length: int) -> str:
    """Return a name without its middle, if it is longer: it begins with the strategy and ends with the seed."""
    if len(name) <= length:
        return name
    kept = length - len(CUT)
    return f"{name[: kept - kept // 2]}{CUT}{name[len(name) - kept // 2 :]}"
