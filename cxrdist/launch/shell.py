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
