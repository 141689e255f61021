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
        f"{unknown(f'A name in `{DEBUG}.{group}`', name, _mapping(plain, group))} [in {where}]"
        for group in GROUPS
        for name in _mapping(changes, group)
        if name not in _mapping(plain, group)
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
            tree[group] = {
                name: {part: _nested(one) if part in CHANGES else one for part, one in entry.items()}
                if isinstance(entry, dict)
                else entry
                for name, entry in tree[group].items()
            }
    return tree


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
        before = _mapping(raw, group)
        if isinstance(kept.get(group), dict):
            kept[group] = {
                name: one for name, one in kept[group].items() if one is not None or before.get(name) is None
            }
    return kept


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
    for group in ("datasets", "variants", "strategies"):
        for name, one in _mapping(study, group).items():
            yield FinetuneConfig, override(recipe, {**_mapping(one, "set"), "shards": "-"}), f"{group}.{name}.set"
    for name, one in _mapping(study, "stages").items():
        where = f"stages.{name}"
        yield FinetuneConfig, override(recipe, {**_mapping(one, "train"), "shards": "-"}), f"{where}.train"
        yield PretrainConfig, override({}, {**_mapping(one, "pretrain"), "shards": ["-"]}), f"{where}.pretrain"


def _mapping(tree: Any, name: str) -> Tree:
    found = tree.get(name) if isinstance(tree, Mapping) else None
    return {key: value for key, value in found.items() if isinstance(key, str)} if isinstance(found, Mapping) else {}
