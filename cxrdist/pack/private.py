"""Files that their owner alone may read: the id key, the id map, and what tables hold that no message may tell."""

import os
from pathlib import Path
from typing import BinaryIO

from cxrdist.errors import UserError


def create_private(path: Path) -> BinaryIO:
    """Open a new file of mode 0600 for writing; folders above that are not there are made, for the owner as well.

    Raises:
        FileExistsError: If it is there.
        OSError: If it cannot be made.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def sync(file: BinaryIO) -> None:
    """Bring what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_private(path: Path, data: bytes, what: str) -> None:
    """Write `data` into a file of mode 0600, all at once or not at all, in place of what was there.

    Raises:
        UserError: If the place cannot be written; `what` begins the sentence ("The id map").
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)
        with create_private(partial) as file:
            file.write(data)
            sync(file)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{what} must be writable, got {error.strerror!r} [in {str(path)!r}].") from None
