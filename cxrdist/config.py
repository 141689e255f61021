"""Configuration: frozen typed models that live beside their component, read from YAML, changed by one `override`.

A run, a study or a sweep is a YAML file that a person reads top to bottom.  ``--set a.b=value``, the cells of a study
and the trials of a sweep all go through `override`.  Every unknown name and every wrong value is reported at once.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from cxrdist.errors import UsageError, nearest

Tree = dict[str, Any]

DEBUG = "debug"
"""The section of a file with the changes that ``--debug`` makes."""

PLAIN_RULES = {
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "path_type": "must be a path",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
}
"""The library's kinds of errors whose own words are about programs."""


class Config(BaseModel):
    """Base of all configuration: immutable, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def read(cls, path: Path, settings: Iterable[str] = (), *, debug: bool = False) -> Self:
        """Return the configuration in the YAML file `path` with ``a.b=value`` `settings` applied.

        Raises:
            UsageError: If the file is missing or not YAML, or if any name or value is wrong; all are listed.
        """
        settings = list(settings)
        if not debug:
            cls._check_debug(path, settings)
        return cls.build(read_tree(path, settings, debug=debug), where=path.name)

    @classmethod
    def _check_debug(cls, path: Path, settings: list[str]) -> None:
        """Refuse a file whose debug size does not fit it, also where nobody asks for it, so that its writer hears.

        Settings are meant for the file as it is: they need not fit its debug size, but may be what makes it whole.
        """
        if DEBUG not in read_yaml(path):
            return
        where = f"{path.name}, with --debug"
        try:
            cls.build(read_tree(path, debug=True), where=where)
        except UsageError:
            cls.build(read_tree(path, settings, debug=True), where=where)

    @classmethod
    def build(cls, tree: Mapping[str, Any], *, where: str) -> Self:
        """Return the configuration that the mapping `tree` describes; `where` names its source in errors."""
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            lines = _sentences(cls, error.errors())
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
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "an unreadable one"
        raise UsageError(f"A configuration file must be YAML, got {problem}{line} [in {path.name}].") from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else type(tree).__name__
        raise UsageError(f"A configuration file must hold a mapping, got {found} [in {path.name}].")
    return tree


def read_tree(path: Path, settings: Iterable[str] = (), *, debug: bool = False) -> Tree:
    """Return the mapping in a YAML file with ``a.b=value`` `settings` applied, and before them its own debug size.

    A file may have a section ``debug`` with dotted names and their values: what makes it end in seconds on a CPU.

    Raises:
        UsageError: If the file is missing or no YAML, or if it has no debug size and `debug` asks for it.
    """
    tree = read_yaml(path)
    changes = tree.pop(DEBUG, None) or {}
    if not isinstance(changes, dict):
        raise UsageError(f"`{DEBUG}` must be a mapping, got {changes!r} [in {path.name}].")
    if debug and not changes:
        raise UsageError(
            f"`--debug` needs a file with a section `{DEBUG}`, got none [in {path.name}]. Write one, with the values "
            "that are smaller."
        )
    return override(override(tree, changes if debug else {}), parse_settings(settings))


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
            parsed[name.strip()] = load_yaml(text)
        except yaml.YAMLError as error:
            problem = error.problem if isinstance(error, yaml.constructor.ConstructorError) else None
            wrong.append(f"`--set {name}` must be a YAML value, got {problem or repr(text)}.")
    if wrong:
        raise UsageError("\n".join(wrong))
    return parsed


def override(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> Tree:
    """Return a deep copy of `tree` with each dotted name of `changes` set; both arguments stay as they are.

    A mapping merges into a mapping, but an empty one as the value of a name clears it; anything else replaces what was
    there.
    """
    changed: Tree = deepcopy(dict(tree))
    for dotted, value in changes.items():
        *parents, last = str(dotted).split(".")
        node = changed
        for parent in parents:
            child = node.get(parent)
            node[parent] = child if isinstance(child, dict) else {}
            node = node[parent]
        old = node.get(last)
        node[last] = {} if isinstance(value, Mapping) and not value else _merged(old, value)
    return changed


def _merged(old: Any, new: Any) -> Any:
    """Return `new` merged into `old`; names inside of values are taken as they are: a code can be 0.5 or a number."""
    if not (isinstance(old, dict) and isinstance(new, Mapping)):
        return deepcopy(new)
    return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}


def shipped(folder: str) -> Path:
    """Return the top-level `folder` ("shards" or "launch"), in a checkout or inside an installed wheel."""
    package = Path(__file__).parent
    inside = package / "shipped" / folder
    return inside if inside.is_dir() else package.parent / folder


def load_yaml(text: str) -> Any:
    """Return the value of a YAML text; ``3e-4`` is a number, and a name given twice is an error.

    Raises:
        yaml.YAMLError: If the text is not YAML.
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """YAML as people write it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # PyYAML keeps the last of two equal names, so the first would be a setting without effect.
        seen = set()
        for key, value in node.value:
            # `{a:1}` is the name "a:1" without a value, and never what was meant.
            if node.flow_style and _is_plain(key) and ":" in key.value and _is_plain(value) and not value.value:
                problem = f"{key.value!r} without a space after its colon"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _is_plain(node: yaml.Node) -> bool:
    """Return whether `node` is a scalar without quotes; an absent value is one too, of no text."""
    return isinstance(node, yaml.ScalarNode) and node.style is None


# YAML 1.1 reads on, off, yes and no as truth values: an option called `on`, a column that says No.
_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))

# YAML 1.1 reads 3e-4 as text (it wants 3.0e-4); nobody types a learning rate that way.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _sentences(cls: type[BaseModel], errors: Sequence[ErrorDetails]) -> list[str]:
    """Return a sentence for each error, and one for all options of another kind than a section's `name` says."""
    lines: list[str] = []
    others: dict[str, list[str]] = {}
    for details in errors:
        if _of_another_kind(cls, details):
            others.setdefault(".".join(_typed_path(cls, details["loc"][:-1])), []).append(str(details["loc"][-1]))
        else:
            lines.append(_sentence(cls, details))
    for section, names in others.items():
        lines.append(
            f"`{section}` must have the options of its own `name` only, got {', '.join(names)} of another one. Clear "
            f"them before the name is changed, as with --set {section}={{}}, and give the new one's options."
        )
    return lines


def _of_another_kind(cls: type[BaseModel], details: ErrorDetails) -> bool:
    """Return whether an unknown name is known to another kind of its section."""
    *section, tag, name = ["", *map(str, details["loc"])] if details["type"] == "extra_forbidden" else ["", "", ""]
    field = _field_at(cls, section[1:])
    kinds = _models(field.annotation) if field and field.discriminator else []
    return any(name in kind.model_fields for kind in kinds if not _tagged(kind, tag))


def _sentence(cls: type[BaseModel], details: ErrorDetails) -> str:
    path = _typed_path(cls, details["loc"])
    name = ".".join(path)
    if details["type"] == "extra_forbidden":
        owner = _model_at(cls, [str(part) for part in details["loc"][:-1]])
        fields = list(owner.model_fields) if owner else []
        return f"`{name}` is unknown.{nearest(path[-1], fields)} Known here: {', '.join(fields)}."
    if details["type"] == "missing":
        return f"`{name}` is required, got nothing."
    value = repr(details["input"])
    got = value if len(value) < 80 else value[:77] + "..."
    if details["type"] == "value_error":
        # A validator of ours: its text is a sentence already, and says what it got.
        text = str(details["ctx"]["error"])
        return f"`{name}`{' ' if text.startswith('must ') else ': '}{text}" if name else text
    return f"`{name or 'A configuration'}` {_rule(details)}, got {got}."


def _rule(details: ErrorDetails) -> str:
    """Return the broken rule in the user's words; the library speaks of classes and instances."""
    if details["type"] in PLAIN_RULES:
        return PLAIN_RULES[details["type"]]
    if details["type"] == "too_short":
        return f"must have at least {details['ctx']['min_length']} entry"
    if details["type"] == "union_tag_invalid":
        return f"must have a {details['ctx']['discriminator']} of {details['ctx']['expected_tags']}"
    if details["type"] == "union_tag_not_found":
        return f"must have a {details['ctx']['discriminator']}"
    rule = details["msg"].removeprefix("Input ")
    return (
        "must" + rule.removeprefix("should") if rule.startswith("should") else f"is wrong: {rule[0].lower()}{rule[1:]}"
    )


def _typed_path(cls: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Return the place of a value as a user writes it: the library's names of the kinds of a value are left out."""
    path = []
    for number, part in enumerate(loc):
        field = _field_at(cls, [str(each) for each in loc[:number]])
        if not (field and _is_kind(str(part), field)):
            path.append(str(part))
    return path


def _is_kind(part: str, field: FieldInfo) -> bool:
    if field.discriminator:
        return True
    kinds = [*_models(field.annotation), bool, int, float, str, list, dict]
    return get_origin(field.annotation) in (Union, UnionType) and part in {kind.__name__ for kind in kinds}


def _field_at(cls: type[BaseModel], path: list[str]) -> FieldInfo | None:
    """Return the field that `path` ends with; None where it ends with a key, a position or a kind."""
    owner = _model_at(cls, path[:-1]) if path else None
    return owner.model_fields.get(path[-1]) if owner else None


def _model_at(cls: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """Return the model that `path` leads to; list positions and keys in it are passed over, union tags choose."""
    model: type[BaseModel] | None = cls
    choices: list[type[BaseModel]] = []
    for part in path:
        chosen = next((each for each in choices if _tagged(each, part)), None)
        field = model.model_fields.get(part) if model and chosen is None else None
        choices = _models(field.annotation) if field else []
        model = chosen or next(iter(choices), model)
    return model


def _tagged(model: type[BaseModel], tag: str) -> bool:
    """Return whether `tag` names the model in a union: by its class, or by one of its literal fields."""
    literals = [field.annotation for field in model.model_fields.values() if get_origin(field.annotation) is Literal]
    return model.__name__ == tag or any(get_args(literal) == (tag,) for literal in literals)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, list, tuple, dict) or get_args(annotation):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []
