"""Set before any library is imported.

One OpenMP thread: several tests fork after torch is there, and a forked child has none of its parent's OpenMP threads
and waits for them for ever, so the parent must never have started any.  On two cores one thread is no slower.

Ctrl-C as a terminal has it: a shell starts background jobs with SIGINT ignored, children inherit that, and tests of
Ctrl-C would wait in vain.
"""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)
