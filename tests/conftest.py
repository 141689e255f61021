"""Set before any library is imported: one OpenMP thread.

Several tests fork after torch is there.  A forked child has none of its parent's OpenMP threads and waits for them for
ever, so the parent must never have started any.  On two cores one thread a process is no slower either.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
