"""The numbers of a run over its steps: `metrics.jsonl`, TensorBoard and experiment trackers get the same ones."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cxrdist.errors import UserError
from cxrdist.log import get_logger
from cxrdist.train.run_folder import RunFolder, flatten, read_lines
from cxrdist.train.trackers import Trackers

log = get_logger(__name__)

TAGS = {
    "samples_per_sec": "throughput/samples_per_sec",
    "mfu": "throughput/device/mfu",
    "data_wait": "time/data_wait",
    "micro_step_s": "time/micro_step_s",
    "device_peak_gib": "memory/device_peak_gib",
    "host_peak_gib": "memory/host_peak_gib",
}
"""Tags (Composer's, where it has one) of values not under ``train/`` or ``val/``; `metrics.jsonl` keeps the flat names.
"""


class MetricsLog:
    """`metrics.jsonl`, TensorBoard and trackers.  A resumed run takes back the lines after the step it starts from."""

    def __init__(self, folder: RunFolder, *, step: int, enabled: bool, trackers: Sequence[str] = ()) -> None:
        """Open the log of `folder` for a run that starts after `step` steps; only where `enabled`, on rank 0.

        Raises:
            UserError: If the disk refuses.
        """
        self.enabled = enabled
        self.folder = folder
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - rank 0 only, and slow to import

        kept = [json.dumps(line) + "\n" for line in read_metrics(folder.metrics) if line["step"] <= step]
        hidden = folder.path / ".metrics.jsonl"
        try:
            hidden.write_text("".join(kept), encoding="utf-8")
            hidden.replace(folder.metrics)
            self.file = folder.metrics.open("a", encoding="utf-8")
            self.board = SummaryWriter(str(folder.tensorboard), purge_step=step + 1)
        except OSError as error:
            raise self._refused(error) from None
        self.trackers = Trackers(folder, trackers)

    def write(self, step: int, kind: Literal["train", "val"], values: dict[str, Any]) -> None:
        """Append one line; its numbers become scalars of TensorBoard and of the trackers, named by `tag`.

        A number that is not finite is null in the line and no scalar.  An array is a picture, (H, W, 3) uint8, which
        goes to TensorBoard alone.

        Raises:
            UserError: If the disk refuses; the run can be resumed from its last checkpoint.
        """
        if not self.enabled:
            return
        pictures = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        values = _finite({name: value for name, value in values.items() if name not in pictures})
        scalars = {
            tag(kind, name): float(value)
            for name, value in flatten(values).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        line = {"step": step, "kind": kind, "time": round(time.time(), 3), **values}
        try:
            self.file.write(json.dumps(line, allow_nan=False) + "\n")
            self.file.flush()
            # TensorBoard writes in a thread; what the disk refused there is raised by the next scalar.
            for name, value in scalars.items():
                self.board.add_scalar(name, value, step)
            for name, picture in pictures.items():
                self.board.add_image(tag(kind, name), picture, step, dataformats="HWC")
        except OSError as error:
            raise self._refused(error) from None
        self.trackers.log(step, scalars)

    def close(self, *, finished: bool = True) -> None:
        """Flush and close all; `finished` is what the trackers are told of how the run ended."""
        if not self.enabled:
            return
        for part in (self.file, self.board):
            try:
                part.close()
            except OSError as error:  # on a full disk; it must not hide what ended the run
                log.warning("The last lines of the metrics could not be written: %s.", error.strerror)
        self.trackers.close(finished=finished)

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"The metrics must be writable, got {error.strerror!r} [in {self.folder.path.name}]. "
            "Make room, then continue with --resume auto."
        )


def tag(kind: str, name: str) -> str:
    """Return the tag of a value; `name` has a dot before a key: ``val/auroc/effusion``."""
    return TAGS.get(name, f"{kind}/{name.replace('.', '/')}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a `metrics.jsonl`; a line torn by a kill is left out."""
    return read_lines(path)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    # JSON has no word for infinity or NaN: a line that holds one cannot be read by strict readers.
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            plain[name] = _finite(value)
        else:
            plain[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return plain
