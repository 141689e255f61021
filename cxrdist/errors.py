"""What a user can cause is a sentence and an exit code, never a traceback.

Messages follow ``<subject> <rule>, got <value> [in <where>]. <way out>`` and never hold an attribute of a patient:
no name, date, DICOM UID, or path of a source file.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Literal, get_args

RejectReason = Literal[
    "missing_file",
    "unreadable",
    "unsupported",
    "constant_image",
    "too_large",
    "no_label_row",
    "projection_filtered",
    "excluded_by_source",
    "duplicate_row",
    "duplicate_pixels",
    "burned_in_text",
]
REJECT_REASONS: tuple[str, ...] = get_args(RejectReason)
"""Why an input became no sample: the fixed vocabulary of `rejects.csv`."""


class UserError(ValueError):
    """The work could not be done with what was given: exit code 1."""

    exit_code = 1


class UsageError(UserError):
    """Wrong usage or configuration, found before any work began: exit code 2."""

    exit_code = 2


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the choice most like `name`, or ``""`` when none is near."""
    close = get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextmanager
def of_setting(name: str) -> Iterator[None]:
    """Say of which setting an error of the block is: one that is about a path knows only the path."""
    try:
        yield
    except UserError as error:
        if f"`{name}`" in str(error):
            raise
        raise type(error)(f"`{name}`: {error}") from None


def unknown(subject: str, name: str, choices: Iterable[str]) -> str:
    """Return the sentence for a name that is none of `choices`."""
    known = list(choices)
    return f"{subject} must be one of {', '.join(known)}, got {name!r}.{nearest(name, known)}"


class ImageRejectedError(UserError):
    """One image cannot become a sample; `reason` is of the fixed vocabulary, `detail` names nothing of the source."""

    def __init__(self, reason: RejectReason, detail: str = "") -> None:
        self.reason: RejectReason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else reason)
