"""Set before any library is imported.

One OpenMP thread: several tests fork after torch is there, and a forked child has none of its parent's OpenMP threads
and waits for them for ever, so the parent must never have started any.  On two cores one thread is no slower.

No width of a terminal: what runs tests in several processes sets one in each, and tables would come in blocks.

Ctrl-C as a terminal has it: a shell starts background jobs with SIGINT ignored, children inherit that, and tests of
Ctrl-C would wait in vain.

Our loggers speak in each test as they do in a new process: some libraries change logging for all when they are loaded.

What the files before left alive is not looked through for garbage again: every engine ends with a collection, and going
through a million objects of libraries each time took a third of the time of tests that train (statsmodels collects
within each adjustment of p-values, too).
"""

import gc
import logging
import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("COLUMNS", None)

import pytest
import torch

# The first backward pass counts the devices that need threads.  Some parts of torch add one that is none (fake
# tensors, the ONNX exporter), and a process that has such threads can fork no child that computes gradients.
torch.ones((), requires_grad=True).backward()
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def forget_what_is_alive() -> None:
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def pytest_runtest_setup() -> None:
    logging.getLogger().setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("cxrdist") and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
