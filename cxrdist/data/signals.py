"""Which signals a reading process heeds."""

import os
import signal
import threading

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def heed_only_the_parent() -> None:
    """Leave the stop signals to the process that this one reads for; only that one's own SIGTERM ends it.

    Some launchers signal every process below them, and terminals and schedulers whole process groups.  The training
    process makes its step and its checkpoint after that, and would find its reading processes killed.  Those end with
    it in any case.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS tells no thread who a signal is from: the parent's must end this one
        signal.pthread_sigmask(signal.SIG_BLOCK, set(STOPS) - {signal.SIGTERM})
        return
    parent = os.getppid()
    # Blocked here, before any thread begins, so that each thread inherits it and only the one below hears of it.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)

    def wait() -> None:
        while True:
            if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
                os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
