"""`rungs.jsonl`: every report that a rule judged and every draw that was asked for; so a search goes on after a kill.

A line is on the disk before anything is done about it.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrdist.disk import append_line
from cxrdist.study.ledger import writing
from cxrdist.train.run_folder import read_lines


@dataclass(frozen=True)
class Journal:
    """What a sweep's driver has seen and decided."""

    path: Path

    def append(self, facts: Mapping[str, Any]) -> None:
        """Add one line in one write, and wait until it is on the disk.

        Raises:
            UserError: If it cannot be written.
        """
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, json.dumps({"time": round(time.time(), 3), **facts}))

    def reports(self, rule: str) -> list[dict[str, Any]]:
        """Return the reports that `rule` judged, in order."""
        return [
            line for line in self._lines({"strategy", "key", "step", "value", "goes_on"}) if line.get("rule") == rule
        ]

    def draws(self, search: str) -> list[dict[str, Any]]:
        """Return the draws that the search `search` asked for, in order."""
        return [line for line in self._lines({"strategy", "number", "values"}) if line.get("search") == search]

    def _lines(self, names: set[str]) -> list[dict[str, Any]]:
        return [line for line in read_lines(self.path) if isinstance(line, dict) and names <= line.keys()]
