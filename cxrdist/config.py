"""Configuration: frozen typed models that live beside their component, read from YAML, changed by one `override`.

A run, a study or a sweep is a YAML file that a person reads top to bottom.  ``--set a.b=value``, the cells of a study
and the trials of a sweep all go through `override`.  Every unknown name and every wrong value is reported at once.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from cxrdist.errors import UsageError, nearest

Tree = dict[str, Any]


class Config(BaseModel):
    """Base of all configuration: immutable, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def read(cls, path: Path, settings: Iterable[str] = ()) -> Self:
        """Return the configuration in the YAML file `path` with ``a.b=value`` `settings` applied.

        Raises:
            UsageError: If the file is missing or not YAML, or if any name or value is wrong; all are listed.
        """
        return cls.build(override(read_yaml(path), parse_settings(settings)), where=path.name)

    @classmethod
    def build(cls, tree: Mapping[str, Any], *, where: str) -> Self:
        """Return the configuration that the mapping `tree` describes; `where` names its source in errors."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            lines = [_sentence(cls, details) for details in error.errors()]
        raise UsageError("\n".join(f"{line} [in {where}]" for line in lines))

    def tree(self) -> Tree:
        """Return the resolved configuration as plain YAML-ready values."""
        return self.model_dump(mode="json")


def read_yaml(path: Path) -> Tree:
    """Return the mapping in a YAML file.

    Raises:
        UsageError: If the file is missing, is not YAML, or holds no mapping.
    """
    if not path.is_file():
        raise UsageError(f"A configuration file must exist, got {str(path)!r}. Check the path.")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(f"A configuration file must be YAML, got an unreadable one{line} [in {path.name}].") from None
    if not isinstance(tree, dict):
        raise UsageError(f"A configuration file must hold a mapping, got {type(tree).__name__} [in {path.name}].")
    return tree


def write_yaml(tree: Mapping[str, Any], path: Path) -> None:
    """Write `tree` in the order given, so that a person reads it top to bottom."""
    text = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=120)
    path.write_text(text, encoding="utf-8")


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Return ``{"a.b": value}`` for each ``a.b=value``; values are read as YAML.

    Raises:
        UsageError: If a setting has no ``=``; all wrong ones are listed.
    """
    parsed: dict[str, Any] = {}
    wrong = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            wrong.append(f"`--set` must be NAME=VALUE, got {setting!r}. Example: --set optim.lr=3e-4")
            continue
        try:
            parsed[name.strip()] = _number(yaml.safe_load(text))
        except yaml.YAMLError:
            wrong.append(f"`--set {name}` must be a YAML value, got {text!r}.")
    if wrong:
        raise UsageError("\n".join(wrong))
    return parsed


def override(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> Tree:
    """Return a copy of `tree` with each dotted name of `changes` set; `tree` stays as it is.

    A mapping merges into a mapping; anything else replaces what was there.
    """
    changed: Tree = {name: override(value, {}) if isinstance(value, Mapping) else value for name, value in tree.items()}
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        node = changed
        for parent in parents:
            child = node.get(parent)
            node[parent] = child if isinstance(child, dict) else {}
            node = node[parent]
        old = node.get(last)
        node[last] = override(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return changed


def shipped(folder: str) -> Path:
    """Return the top-level `folder` ("shards" or "launch"), in a checkout or inside an installed wheel."""
    package = Path(__file__).parent
    inside = package / "shipped" / folder
    return inside if inside.is_dir() else package.parent / folder


def _number(value: Any) -> Any:
    # YAML 1.1 reads 3e-4 as text (it wants 3.0e-4); nobody types a learning rate that way.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _sentence(cls: type[BaseModel], details: ErrorDetails) -> str:
    *parents, last = details["loc"] or ("",)
    name = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        owner = _model_at(cls, [str(part) for part in parents])
        fields = list(owner.model_fields) if owner else []
        return f"`{name}` is unknown.{nearest(str(last), fields)} Known here: {', '.join(fields)}."
    if details["type"] == "missing":
        return f"`{name}` is required, got nothing."
    rule = details["msg"].removeprefix("Value error, ")
    if not name:
        return rule
    value = repr(details["input"])
    return f"`{name}` is wrong: {rule[0].lower()}{rule[1:]}, got {value if len(value) < 80 else value[:77] + '...'}."


def _model_at(cls: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """Return the model that `path` leads to; list positions, keys and union tags in it are passed over."""
    model: type[BaseModel] | None = cls
    for part in path:
        field = model.model_fields.get(part) if model else None
        if field is not None:
            model = next(iter(_models(field.annotation)), model)
    return model


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, list, tuple, dict) or get_args(annotation):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []
