"""A command on a cluster that is elsewhere, through Ray's job submission: ``http(s)://`` is a head's dashboard.

Only small files travel there (the command's own), and the log back.  Every request has a time limit; the log is asked
for again where the connection was lost, and what was seen of it is not shown twice: a study runs for days, and a laptop
sleeps.
"""

import asyncio
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cxrdist import __version__
from cxrdist.dispatch.code import EXPECTED, code_version, stage_code
from cxrdist.errors import UsageError, UserError
from cxrdist.log import get_logger

log = get_logger(__name__)

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 60.0
"""For one answer of the head; Ray's own client would wait for ever."""
LOOK_EVERY_S = 1.0
QUIET_S = 60.0
"""A log that is silent for so long is asked for again: a connection can be lost without either end being told."""
LOST_AFTER_S = 300.0
"""How long a head may not answer before its job is given up on here."""
SAY_AFTER_S = 10.0
"""And before it is said."""
AGAIN_AFTER_S = 2.0
STOP_WAIT_S = 60
"""What a stopped command is given to end its trials; Ray's 3 s are too few for a checkpoint."""

ON_THE_HEAD = "auto"
"""The address that a submitted command has: the cluster of its job."""

OF_RAY = re.compile(r"Running entrypoint for job |\d{4}-\d\d-\d\d [\d:,.]+\tINFO \w+\.py:\d+ -- ")
"""Lines of a log that are not the command's."""
OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Ray's client would go there, whatever address it is given."""
NOT_FOUND = 127
"""A shell's answer where there is no such program."""


ABSENT = (
    "`--address` must be the dashboard of a running Ray head, got {!r}: {}. Started with `ray start --head "
    "--dashboard-host=0.0.0.0`, it is at port 8265."
)


def is_submission(address: str | None) -> bool:
    """Return whether `address` is that of a dashboard: the command is to run there, and not here."""
    return address is not None and address.lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class Job:
    """A submitted command."""

    address: str
    identity: str

    @property
    def ways(self) -> str:
        """Return how it is followed and stopped."""
        return (
            f"Follow it: `ray job logs --address {self.address} --follow {self.identity}`. "
            f"Stop it: `ray job stop --address {self.address} {self.identity}`."
        )


def submit(
    address: str,
    arguments: Sequence[str],
    *,
    name: str,
    files: Mapping[str, Path] | None = None,
    keep: str | None = None,
    ship_code: bool = False,
    columns: int | None = None,
) -> Job:
    """Submit ``cxrdist ARGUMENTS`` to the cluster whose dashboard is at `address`, and return the job at once.

    There it begins with the check that the cluster has the code of this machine, see `cxrdist.dispatch.code`.

    Args:
        address: ``http(s)://HOST:PORT``.
        arguments: Behind the program's name; paths are the cluster's, relative ones those of `files`.
        name: What the dashboard calls it, e.g. "cxrdist study demo".
        files: Name where the command starts, which may be in a folder -> the file here.
        keep: Folder of the cluster that `files` are put into, and the command starts in, for work that machines share
            and that is resumed; None: a folder of Ray's, for the time of the job.
        ship_code: Bring this machine's code along, in place of what the cluster has.
        columns: Width of the terminal that its tables are for; None: they are as wide as they are.

    Raises:
        UsageError: If `address` is no address, or a file cannot be read.
        UserError: If there is no dashboard, or it takes no job.
    """
    client = _connect(address)
    identity = f"{_plain(name)}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    command = shlex.join(["python", "-m", "cxrdist", *arguments])
    if keep is not None:
        folder = shlex.quote(keep)
        command = f"mkdir -p {folder} && cp -R ./. {folder} && cd {folder} && exec {command}"
    variables = {EXPECTED: code_version(), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    if columns:
        variables["COLUMNS"] = str(columns)
    taken = f"The dashboard at {address!r} must take the command, got: {{}}. `ray status` on its head says how it is."
    with tempfile.TemporaryDirectory(prefix="cxrdist-") as temporary, _told(address, taken):
        working = Path(temporary) / "job"
        _gather(files or {}, working)
        environment: dict[str, Any] = {"working_dir": str(working), "env_vars": variables}
        if ship_code:
            environment["py_modules"] = [str(stage_code(Path(temporary)))]
        client.submit_job(
            entrypoint=command,
            submission_id=identity,
            runtime_env=environment,
            metadata={"job_name": name, "cxrdist": __version__},
        )
    return Job(address, identity)


def follow(job: Job, write: Callable[[str], None]) -> int:
    """Hand over the log of `job` until it ends, and return its exit code.

    Args:
        job: Of `submit`.
        write: Gets whole lines, standard output and standard error as they came.

    Raises:
        UserError: If it did not start, was stopped by others, its head answers no more, or another does.
    """
    client = _connect(job.address)
    shown = _Shown(write)
    lost_at: float | None = None
    told = False
    while True:
        try:
            asyncio.run(_tail(client, job.identity, shown))
            info = client.get_job_info(job.identity)
            rest = client.get_job_logs(job.identity) if info.status.is_terminal() else None
        except Exception as error:  # of requests, of aiohttp, or Ray's sentence about an answer of the head
            now = time.monotonic()
            lost_at = now if lost_at is None else lost_at
            if _is_unknown(client, job.identity):
                raise UserError(
                    f"The head of the cluster must know job {job.identity} until it ends, got one that was started "
                    "anew and does not. What is finished stays; the same command goes on."
                ) from None
            if now - lost_at > SAY_AFTER_S and not told:
                log.warning("The head of the cluster does not answer; it is asked for %.0f s more.", LOST_AFTER_S)
                told = True
            if now - lost_at > LOST_AFTER_S:
                raise UserError(
                    f"The head of the cluster must answer until the job ends, got no answer for {LOST_AFTER_S:.0f} s: "
                    f"{_line(error)}. The job may go on. {job.ways}"
                ) from None
            time.sleep(AGAIN_AFTER_S)
            continue
        lost_at, told = None, False
        if rest is not None:
            shown.restart()
            shown.feed(rest)
            shown.end()
            return _exit_code(info, shown.last)


def _is_unknown(client: Any, identity: str) -> bool:
    """Return whether the head answers that it has no such job."""
    try:
        client.get_job_info(identity)
    except RuntimeError as error:  # what Ray's client makes of any answer but a good one
        return "status code 404" in str(error) and "does not exist" in str(error)
    except Exception:  # of requests: no answer
        return False
    return False


class _Shown:
    """What is handed over of a log: every line once, and none of Ray's own."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._seen = self._at = 0
        self._rest = ""
        self.last = ""
        """The line before, for who asks why a command did not start."""

    def restart(self) -> None:
        """Expect the log from its first character again."""
        self._at = 0

    def feed(self, text: str) -> None:
        """Take the next piece of the log."""
        new = text[max(0, self._seen - self._at) :]
        self._at += len(text)
        self._seen = max(self._seen, self._at)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._show(f"{line}\n")

    def end(self) -> None:
        """Hand over a last line that has no end."""
        if self._rest:
            self._show(self._rest)

    def _show(self, line: str) -> None:
        if not OF_RAY.match(line):
            self.last = line
            self._write(line)


async def _tail(client: Any, identity: str, shown: _Shown) -> None:
    """Hand over the log until the job has ended, or the log is silent for long.

    Ray ends its log seconds after the job, so it is asked about the job whenever nothing comes.
    """
    shown.restart()
    stream = client.tail_job_logs(identity)
    heard = time.monotonic()
    turn = asyncio.ensure_future(anext(stream, None))
    try:
        while True:
            if (await asyncio.wait({turn}, timeout=LOOK_EVERY_S))[0]:
                text = turn.result()
                if text is None:
                    return
                shown.feed(text)
                heard = time.monotonic()
                turn = asyncio.ensure_future(anext(stream, None))
            elif client.get_job_info(identity).status.is_terminal() or time.monotonic() - heard > QUIET_S:
                return
    finally:
        turn.cancel()


def _exit_code(info: Any, last: str) -> int:
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        raise UserError("The job must run to its end, got it stopped on the cluster. The same command goes on with it.")
    code = info.driver_exit_code
    if code is None:
        raise UserError(f"The head of the cluster must start the command, got: {_line(info.message)}")
    if code == NOT_FOUND or "No module named cxrdist" in last:
        raise UserError(
            f"The head of the cluster must have cxrdist in the `python` that its jobs find, got: {last.strip()}. Start "
            "`ray start` there with cxrdist's environment activated."
        )
    return int(code) if code >= 0 else 128 - int(code)


def _gather(files: Mapping[str, Path], folder: Path) -> None:
    """Copy `files` into `folder`, which is never empty: Ray would refuse it."""
    folder.mkdir()
    (folder / ".cxrdist").write_text(__version__, encoding="utf-8")
    for name, path in files.items():
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        except OSError as error:
            raise UsageError(f"A file of the command must be readable, got {str(path)!r}: {error.strerror}.") from None


def _connect(address: str) -> Any:
    """Return Ray's client of the dashboard at `address`, every request of which ends."""
    _knock(address)
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415 - half a second, and only for a submission

    class Client(JobSubmissionClient):
        def _do_request(self, *args: Any, **settings: Any) -> Any:
            return super()._do_request(*args, **{"timeout": REQUEST_TIMEOUT_S, **settings})

    token = _token()
    headers = {"Authorization": f"Bearer {token}"} if token else None
    hidden = {name: os.environ.pop(name) for name in OVERRIDES if name in os.environ}
    try:
        with _told(address, ABSENT.format(address, "{}")):
            client = Client(address, headers=headers)
    finally:
        os.environ.update(hidden)
    for handler in logging.getLogger("ray").handlers:  # what it uploads is told at any level of its loggers
        handler.setLevel(logging.ERROR)
    return client


def _knock(address: str) -> None:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        host = ""
    if not host:
        raise UsageError(
            f"`--address` must be http://HOST:PORT of a dashboard, got {address!r}. Example: http://10.0.0.5:8265"
        )
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(ABSENT.format(address, error)) from None


def _token() -> str | None:
    """Return the token of this machine's user, from where Ray looks for it, in Ray's order."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


@contextmanager
def _told(address: str, sentence: str) -> Iterator[None]:
    """Turn what Ray's client and the connection may answer into `sentence`, which has a place for it."""
    from ray.exceptions import AuthenticationError  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    try:
        yield
    except UserError:
        raise
    except AuthenticationError:
        raise UserError(
            f"The cluster at {address!r} must be given its token, got {'another' if _token() else 'none'}. Let "
            "RAY_AUTH_TOKEN_PATH name a file with it; `ray get-auth-token` on its head prints it."
        ) from None
    except (RequestException, RuntimeError, ConnectionError) as error:
        raise UserError(sentence.replace("{}", _line(error).rstrip("."))) from None


def _line(error: object) -> str:
    text = str(error).strip()
    return next(iter(text.splitlines()), type(error).__name__)[:300]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()
