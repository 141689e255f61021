"""YAML launchers: a file of ``launch/`` as trees that are changed and written again."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from cxrdist.config import Tree
from cxrdist.launch.shell import read_shipped


def read_trees(name: str) -> list[Tree]:
    """Return the documents of a YAML file of ``launch/``."""
    return list(yaml.safe_load_all(read_shipped(name)))


def dump(trees: Sequence[Tree], head: Sequence[str]) -> str:
    """Return `trees` as the documents of one YAML file below the lines of a comment; what they mean stays as it is."""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head)
    return comment + "---\n".join(
        yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120) for tree in trees
    )


class _Dumper(yaml.SafeDumper):
    """YAML as people write it: no anchors, and texts of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


OTHERWISE = re.compile(r".*[\x85\u2028\u2029].*|[-+.\d][-+.\de]*|0o\d+", re.DOTALL)
"""Texts that a newer YAML than ours reads in another way: what ends a line here only; numbers, 1e3 and 0o17."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if OTHERWISE.fullmatch(value) else "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
