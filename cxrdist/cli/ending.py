"""How a command ends: an exit code, and on standard error one sentence that says what to do."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol, runtime_checkable

from cxrdist.errors import UserError

KEPT = "Interrupted. What is finished stays; the same command goes on from there (a training with --resume auto)."
NOTHING_KEPT = "Interrupted. Nothing of it is kept; the same command begins anew."
AT_ONCE = ("bench", "compare", "datasets", "doctor", "launch", "plan", "power")
"""Commands that keep nothing before their end."""
REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.EIO,
    errno.ENAMETOOLONG, errno.EMFILE, errno.ESTALE, errno.EEXIST,
)  # fmt: skip
"""What a file system may answer to a correct program; any other is a bug and keeps its traceback."""


class Stopped(BaseException):
    """A signal has ended the command in good order, and this is what to say of it."""

    def __init__(self, signum: int, sentence: str) -> None:
        self.signum = signum
        super().__init__(sentence)


def end_with_sentence(command: Callable[[], int | None], arguments: Sequence[str]) -> int:
    """Run `command`, tell what went wrong in a sentence, and return the exit code."""
    signals: list[int] = []
    try:
        with _interrupt_on_signals(signals):
            code = command()
            sys.stdout.flush()
    except UserError as error:
        return _tell(error.exit_code, f"Error: {error}")
    except Stopped as stop:
        return _tell(128 + stop.signum, str(stop))
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader (`head`) has left; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        sentence = _usage_sentence(error) or _system_sentence(error, arguments)
        if sentence is None:
            raise
        return _tell(2 if isinstance(error, _UsageSaid) else 1, sentence)
    if code == 128 + signal.SIGINT:  # typer's answer to an interrupt
        return _tell(128 + (signals or [signal.SIGINT])[0], _interrupted(arguments))
    return code or 0


def _interrupted(arguments: Sequence[str]) -> str:
    command = next((word for word in arguments if not word.startswith("-")), "")
    return NOTHING_KEPT if command in AT_ONCE else KEPT


def _tell(code: int, sentence: str) -> int:
    if sentence:
        print(sentence, file=sys.stderr)
    return code


@contextmanager
def _interrupt_on_signals(signals: list[int]) -> Iterator[None]:
    """Turn SIGTERM and SIGUSR1 into an exception, so that clusters and pools of ours end with the command.

    The signal is noted in `signals`.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        signals.append(signum)
        raise KeyboardInterrupt  # the one exception that Ray's compiled code lets through whole

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@runtime_checkable
class _UsageSaid(Protocol):
    """An error of click: typer carries click inside since 0.26 and imports it before; both name their errors alike."""

    def format_message(self) -> str: ...


def _usage_sentence(error: Exception) -> str | None:
    if not isinstance(error, _UsageSaid):
        return None
    if type(error).__name__ == "NoArgsIsHelpError":
        return "Error: A command must follow; the commands are listed above."
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "cxrdist"
    return f"Error: {message}{'' if message.endswith('?') else '.'} See `{path} --help`."


def _system_sentence(error: Exception, arguments: Sequence[str]) -> str | None:
    """Return a sentence that names the argument below which it happened: a source's own path is private."""
    if not isinstance(error, OSError) or error.errno not in REFUSED:
        return None
    file = Path(os.fsdecode(error.filename)).absolute() if isinstance(error.filename, str | bytes) else None
    below = [one for one in arguments if file is not None and file.is_relative_to(Path(one).absolute())]
    where = f" [at or below {max(below, key=len)!r}]" if below else ""
    return (
        f"Error: The system must let files be read and written, got {error.strerror!r}{where}. Mend that, then go on."
    )
