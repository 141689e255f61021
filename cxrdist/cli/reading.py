"""Files of runs, studies and sweeps, as the commands that run them read them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from cxrdist.config import Config, read_tree
from cxrdist.errors import UsageError

AnyConfig = TypeVar("AnyConfig", bound=Config)
COMMANDS = {"train": "train", "pretrain": "pretrain", "study": "study run", "sweep": "sweep"}
"""What runs a file of each kind."""


def read_file(config: type[AnyConfig], file: Path, settings: Sequence[str] | None, *, debug: bool) -> AnyConfig:
    """Return what `file` describes.

    Raises:
        UsageError: If it is a file for another command, or any name or value in it is wrong; all are listed.
    """
    try:
        return config.read(file, settings or (), debug=debug)
    except UsageError:
        from cxrdist.launch.request import CONFIGS, kind_of

        kind = kind_of(read_tree(file, settings or (), debug=debug))
        if kind is None or CONFIGS[kind] is config:
            raise
        wanted = next(name for name, one in CONFIGS.items() if one is config)
        raise UsageError(
            f"`cxrdist {COMMANDS[wanted]}` must be given a {wanted} file, got a {kind} file [{file.name}]. "
            f"For it: cxrdist {COMMANDS[kind]} {file}"
        ) from None
