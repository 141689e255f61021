"""Which signals a reading process heeds."""

import multiprocessing
import os
import signal
import threading

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

PARENT_CHECK_S = 1.0
"""How often a reading process looks whether the one it reads for still lives."""


def heed_only_the_parent() -> None:
    """Leave the stop signals to the process that this one reads for; only that one's own SIGTERM ends it.

    Some launchers signal every process below them, and terminals and schedulers whole process groups.  The training
    process makes its step and its checkpoint after that, and would find its reading processes killed.  Those end with
    it in any case, also where it was killed in the very moment in which they began: they would read for nobody for
    ever, and hold its lock on the run folder.
    """
    if not hasattr(
        signal, "sigtimedwait"
    ):  # macOS tells no thread who a signal is from: the parent's must end this one
        signal.pthread_sigmask(signal.SIG_BLOCK, set(STOPS) - {signal.SIGTERM})
        return
    # Who began this process, not whose child it is by now.
    begun_by = multiprocessing.parent_process()
    reads_for = begun_by.pid if begun_by else os.getppid()
    # Blocked here, before any thread begins, so that each thread inherits it and only the one below hears of it.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)

    def wait() -> None:
        while True:
            told = signal.sigtimedwait({signal.SIGTERM}, PARENT_CHECK_S)
            if os.getppid() != reads_for or (told and told.si_pid == reads_for):
                os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
