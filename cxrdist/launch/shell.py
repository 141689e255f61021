"""Shell launchers: a file of ``launch/`` with one run filled in."""

import re
import shlex
from collections.abc import Mapping, Sequence

from cxrdist.config import shipped
from cxrdist.errors import UsageError
from cxrdist.launch.request import Request

BEGIN = "# >>> this run"
END = "# <<<"
SBATCH = re.compile(r"^#SBATCH --(?P<key>[a-z-]+)(?:=\S+)?.*$")


def fill(text: str, lines: Sequence[str], *, sbatch: Mapping[str, str | None] | None = None) -> str:
    """Return a shell file with `lines` in place of what stands between its two marker lines.

    Args:
        text: The file; a line of it begins with `BEGIN`, a later one is `END`.
        lines: Lines of shell.
        sbatch: Options of ``sbatch`` to be set in its ``#SBATCH`` lines: a value, "" for an option without one, None to
            leave it out.  Those that the file does not have come after its last one.
    """
    rows = text.splitlines()
    first = next(number for number, row in enumerate(rows) if row.startswith(BEGIN))
    last = next(number for number, row in enumerate(rows) if number > first and row.rstrip() == END)
    rows[first : last + 1] = [BEGIN, *lines, END]
    return "\n".join(_with_options(rows, dict(sbatch or {}))) + "\n"


def _with_options(rows: Sequence[str], wanted: dict[str, str | None]) -> list[str]:
    done: list[str] = []
    after = 0
    for row in rows:
        found = SBATCH.match(row)
        if found is None:
            done.append(row)
            continue
        key = found["key"]
        if key not in wanted:
            done.append(row)
        elif (value := wanted.pop(key)) is not None:
            done.append(_option(key, value))
        after = len(done)
    done[after:after] = [_option(key, value) for key, value in wanted.items() if value is not None]
    return done


def _option(key: str, value: str) -> str:
    return f"#SBATCH --{key}={value}" if value else f"#SBATCH --{key}"


def with_head(text: str, lines: Sequence[str]) -> str:
    """Return a shell file with `lines` as the comment at its top, in place of its own, up to the first other line."""
    shebang, *rows = text.splitlines()
    first = next(number for number, row in enumerate(rows) if row != "#" and not row.startswith("# "))
    return "\n".join([shebang, *(f"# {line}".rstrip() for line in lines), *rows[first:]]) + "\n"


def quote(words: Sequence[str]) -> str:
    """Return `words` as one line of shell that a shell takes apart into the same words."""
    return shlex.join(words)


def this_run(request: Request, words: Sequence[str]) -> list[str]:
    """Return the lines for `fill`: the folder, the programs, the user's setup, and the command as arguments."""
    return [
        f"cd {quote([str(request.here)])} || exit 1",
        f"export PATH={quote([str(request.bin)])}:$PATH",
        *request.setup,
        f"set -- {quote(words)}",
    ]


def check_hosts(request: Request, pattern: str, *, first_alone: bool = False, example: str = "") -> tuple[str, ...]:
    """Return the hosts of a request, the head first.

    Args:
        request: Has a host for each machine.
        pattern: What a host looks like.
        first_alone: Whether none, or the first one alone, will do too.
        example: More words for the example in the sentence of an error.

    Raises:
        UsageError: If there are more or fewer, one is named twice, or one is neither a name nor an address.
    """
    hosts = request.hosts
    enough = {0, 1, request.nodes} if first_alone else {request.nodes}
    if len(hosts) not in enough or len(set(hosts)) < len(hosts):
        rule = f"{'the first host, or ' * first_alone}each of {request.nodes} hosts once"
        raise UsageError(
            f"`--host` must name {rule}, got {', '.join(hosts) or 'none'}. "
            f"Example: --host host1{' --host host2' * (not first_alone)}{example}"
        )
    for host in hosts:
        if not re.fullmatch(pattern, host):
            raise UsageError(f"`--host` must be a name or an address, got {host!r}. Example: --host host1")
    return hosts


def this_file(request: Request) -> tuple[str, str]:
    """Return what a rendered file is called in the commands of its head, and the end of a sentence that explains it."""
    if request.target_file is None:
        return "FILE", ", where FILE is this file."
    return quote([check_line("`--out`", str(request.target_file))]), ""


def read_shipped(name: str) -> str:
    """Return the text of a file of ``launch/``, in a checkout or an installed wheel."""
    return (shipped("launch") / name).read_text(encoding="utf-8")


def check_line(subject: str, value: str) -> str:
    """Return `value` if it is one line: what is written into a comment or an option must not begin another one.

    Raises:
        UsageError: If it is not.
    """
    if not value.isprintable():
        raise UsageError(f"{subject} must be one line of printable characters, got {value!r}. Leave the others out.")
    return value
