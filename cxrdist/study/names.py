"""Unknown names inside a study's recipe and its changes, found before the study itself is right.

The plan looks at resolved configurations, and so only at a study whose own names are right.  Where these are wrong,
this tells the others in the same breath.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from cxrdist.config import Config, Tree, override
from cxrdist.errors import UsageError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.pretrain.config import PretrainConfig


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
    for group in ("datasets", "strategies"):
        for name, one in _mapping(study, group).items():
            yield FinetuneConfig, override(recipe, {**_mapping(one, "set"), "shards": "-"}), f"{group}.{name}.set"
    for name, one in _mapping(study, "stages").items():
        where = f"stages.{name}"
        yield FinetuneConfig, override(recipe, {**_mapping(one, "train"), "shards": "-"}), f"{where}.train"
        yield PretrainConfig, override({}, {**_mapping(one, "pretrain"), "shards": ["-"]}), f"{where}.pretrain"


def _mapping(tree: Any, name: str) -> Tree:
    found = tree.get(name) if isinstance(tree, Mapping) else None
    return {key: value for key, value in found.items() if isinstance(key, str)} if isinstance(found, Mapping) else {}
