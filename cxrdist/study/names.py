"""Unknown names inside a study's recipe and its changes, found before the study itself is right.

The plan looks at resolved configurations, and so only at a study whose own names are right.  Where these are wrong,
this tells the others in the same breath.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from cxrdist.config import DEBUG, Config, Tree, override
from cxrdist.errors import UsageError, unknown
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.pretrain.config import PretrainConfig

GROUPS = ("datasets", "stages", "strategies", "variants")
"""Parts of a study that hold others by name."""
DIMENSIONS = "dimensions"
"""The part that holds such parts by name."""
CHANGES = ("set", "pretrain", "train")
"""Parts of these that are dotted names or trees."""


def names_of_debug(plain: Tree, sized: Tree, debugged: Tree, *, where: str) -> list[str]:
    """Return a sentence for each wrong name that the debug size of a study brings into it.

    Args:
        plain: The tree of the file without it.
        sized: The debug size.
        debugged: The tree with it applied.
        where: The file.
    """
    changes = override({}, sized)
    found = [
        f"{unknown(f'A name in `{DEBUG}.{group}`', name, _at(plain, group))} [in {where}]"
        for group in (*_groups(changes), DIMENSIONS)
        for name in _at(changes, group)
        if name not in _at(plain, group)
    ]
    where = f"{where}, with --debug"
    of_the_file = {line.replace(where, "") for line in unknown_names(plain, where=where)}
    return found + [line for line in unknown_names(debugged, where=where) if line.replace(where, "") not in of_the_file]


def with_nested_changes(raw: Mapping[str, Any]) -> Tree:
    """Return the tree of a study in which ``model: {...}`` followed by ``model.weights: ...`` is one mapping.

    Else a change of one of the two would be undone by the other, which is applied later.
    """
    tree = dict(raw)
    if isinstance(tree.get("recipe"), dict):
        tree["recipe"] = _nested(tree["recipe"])
    for group in GROUPS:
        if isinstance(tree.get(group), dict):
            tree[group] = _with_nested_entries(tree[group])
    if isinstance(tree.get(DIMENSIONS), dict):
        # A size may be a number, and names are text.
        tree[DIMENSIONS] = {
            name: _with_nested_entries({_text(one): entry for one, entry in values.items()})
            if isinstance(values, dict)
            else values
            for name, values in tree[DIMENSIONS].items()
        }
    return tree


def _with_nested_entries(group: Tree) -> Tree:
    return {
        name: {part: _nested(one) if part in CHANGES else one for part, one in entry.items()}
        if isinstance(entry, dict)
        else entry
        for name, entry in group.items()
    }


def _text(name: Any) -> Any:
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


def _nested(changes: Any) -> Any:
    if not isinstance(changes, dict):
        return changes
    nested: Tree = {}
    for name, value in changes.items():
        head, _, rest = str(name).partition(".")
        alone = not any(str(other).startswith(f"{head}.") for other in nested)
        # An empty mapping clears what it stands for, and only at the end of a dotted name.
        if rest and nested.get(head) and isinstance(nested[head], dict) and alone and value != {}:
            nested[head] = override(nested[head], {rest: value})
        else:
            nested[name] = value
    return nested


def without_removed(tree: Tree, raw: Mapping[str, Any]) -> Tree:
    """Return `tree`, which is `raw` changed, without the datasets, stages ... that the changes made null."""
    kept = dict(tree)
    for group in GROUPS:
        if isinstance(kept.get(group), dict):
            kept[group] = _without_null(kept[group], _mapping(raw, group))
    if isinstance(kept.get(DIMENSIONS), dict):
        before = _mapping(raw, DIMENSIONS)
        kept[DIMENSIONS] = {
            name: _without_null(values, _mapping(before, name)) if isinstance(values, dict) else values
            for name, values in _without_null(kept[DIMENSIONS], before).items()
        }
    return kept


def _without_null(group: Tree, before: Tree) -> Tree:
    return {name: one for name, one in group.items() if one is not None or before.get(name) is None}


def names_of_settings(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each of the dotted `changes` that sets a part of what `tree` has not: a slip of the pen.

    A whole new dataset, variant ... may be given, as a mapping; and then parts of it.
    """
    wrong = []
    given: Tree = dict(tree)
    for setting, value in changes.items():
        group, *names = setting.split(".")
        places = {DIMENSIONS: 2}.get(group, 1 if group in GROUPS else 0)
        for depth in range(min(places, len(names))):
            known, name = _at(given, ".".join([group, *names[:depth]])), names[depth]
            new = depth == len(names) - 1 and isinstance(value, Mapping)
            if name not in known and not new:
                what = (
                    f"`--set {setting}`: {'a name' if known else 'the name'} in `{'.'.join([group, *names[:depth]])}`"
                )
                told = unknown(what, name, known) if known else f"{what} must be in the file, got {name!r}."
                whole = ".".join([group, *names[: depth + 1]])
                wrong.append(f"{told} Give a new one as a whole: --set '{whole}={{...}}'.")
                break
        given = override(given, {setting: value})
    return wrong


def unknown_names(study: Mapping[str, Any], *, where: str) -> list[str]:
    """Return a sentence for each unknown name in the recipe and in what changes it, each once.

    `study` is the tree of a study, from `where`, of which anything may be wrong.  Values are not judged: they may
    depend on what is.
    """
    found: dict[str, str] = {}
    for cls, tree, part in _parts(study):
        try:
            cls.build(tree, where=part)
        except UsageError as error:
            for line in str(error).splitlines():
                if "` is unknown." in line:
                    found.setdefault(line.removesuffix(f" [in {part}]"), part)
    return [f"{sentence} [in {where}, {part}]" for sentence, part in found.items()]


def _parts(study: Mapping[str, Any]) -> Iterator[tuple[type[Config], Tree, str]]:
    recipe = override({}, _mapping(study, "recipe"))
    yield FinetuneConfig, {**recipe, "shards": "-"}, "recipe"
    for group in [one for one in _groups(study) if one != "stages"]:
        for name, one in _at(study, group).items():
            yield FinetuneConfig, override(recipe, {**_mapping(one, "set"), "shards": "-"}), f"{group}.{name}.set"
    for name, one in _mapping(study, "stages").items():
        where = f"stages.{name}"
        yield FinetuneConfig, override(recipe, {**_mapping(one, "train"), "shards": "-"}), f"{where}.train"
        yield PretrainConfig, override({}, {**_mapping(one, "pretrain"), "shards": ["-"]}), f"{where}.pretrain"


def _mapping(tree: Any, name: str) -> Tree:
    found = tree.get(name) if isinstance(tree, Mapping) else None
    return {key: value for key, value in found.items() if isinstance(key, str)} if isinstance(found, Mapping) else {}


def _groups(study: Any) -> list[str]:
    """Return the dotted names of all that holds parts by name, but for the dimensions as such."""
    return [*GROUPS, *(f"{DIMENSIONS}.{name}" for name in _mapping(study, DIMENSIONS))]


def _at(tree: Any, dotted: str) -> Tree:
    for name in dotted.split("."):
        tree = _mapping(tree, name)
    return dict(tree)
