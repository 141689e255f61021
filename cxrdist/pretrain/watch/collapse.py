"""When all images have become one to the network.

A network that was never trained keeps images hardly apart (its features differ by a tenth of their length), and a good
run keeps them even less apart for a while.  In small runs of every method that kept what tells images apart, features
fell to a twentieth of that (0.006), the embedding of DINO's student to a sixtieth, and what its prototypes tell of
images to a hundredth; in runs broken on purpose, by a temperature, a momentum, a centre that stands still or a learning
rate of 1, one value or the other fell below all that.  So a value counts as collapsed below a limit that no good run
came to *and* after a fall deeper than theirs since the first look, before the first step.  Prototypes that tell nothing
at all have no fall to show: a temperature can be wrong from the start.
"""

from dataclasses import dataclass
from typing import Any

from cxrdist.pretrain.config import PretrainConfig


@dataclass(frozen=True)
class Limit:
    """Where one value says that images have become one."""

    name: str
    below: float
    share: float | None
    """Of the first look's value, below which it must have fallen as well; None asks for no fall."""
    means: str
    where_prototypes: bool = True
    """Whether it holds for methods with prototypes too, which part these first and embeddings later."""


LIMITS = (
    Limit("prototype_entropy", 0.02, 0.5, "all images have one prototype"),
    Limit("prototype_information", 1e-5, None, "all images have the same prototypes"),
    Limit("prototype_information", 1e-4, 0.002, "all images have the same prototypes"),
    Limit("embedding_std", 0.001, 0.01, "all images have one embedding"),
    Limit("embedding_std", 0.01, 0.2, "all images have one embedding", where_prototypes=False),
    Limit("feature_std", 0.001, 0.02, "all images have the same features"),
    Limit("rankme", 1.03, 0.9, "the features lie on one line"),
)
"""In the order in which they are looked at; the first that holds is told."""


@dataclass(frozen=True)
class Collapse:
    """What was seen, and the way out; a sentence each."""

    seen: str
    way_out: str


def find_collapse(
    config: PretrainConfig, step: int, values: dict[str, Any], first: dict[str, Any] | None
) -> Collapse | None:
    """Return the collapse that the `values` of a look after `step` steps show, if they do.

    `first` is the line of the first look, None where there was none: then the limits alone decide.
    """
    if values["feature_std"] is None:
        return Collapse(f"Features must be finite numbers, got others at step {step}.", _way_out(config, "feature_std"))
    for limit in LIMITS:
        value, before = values.get(limit.name), (first or {}).get(limit.name)
        if value is None or value >= limit.below or ("prototype_entropy" in values and not limit.where_prototypes):
            continue
        if limit.share is None or before is None or value < limit.share * before:
            fell = "" if before is None or first is None else f", after {before:.2g} at step {first['step']}"
            seen = f"A pretraining must keep images apart, got `{limit.name}` {value:.2g} at step {step}{fell}"
            return Collapse(f"{seen}: {limit.means}.", _way_out(config, limit.name))
    return None


def _way_out(config: PretrainConfig, name: str) -> str:
    """Return what to change, of what the method has."""
    method: Any = config.method
    changes = ["a lower `optim.lr`"]
    if hasattr(method, "momentum"):
        changes.append("a higher `method.momentum`")
    if hasattr(method, "teacher_temperature"):
        # Sharp targets keep the teacher from giving all prototypes alike, and drive it to one of them.
        changes.append(f"a {'higher' if name == 'prototype_entropy' else 'lower'} `method.teacher_temperature`")
    elif hasattr(method, "sinkhorn_epsilon"):
        changes.append("a lower `method.sinkhorn_epsilon`")
    elif hasattr(method, "temperature"):
        changes.append("another `method.temperature`")
    *others, last = changes
    told = f"{', '.join(others)} or {last}" if others else last
    return f"Begin anew with {told}, or go on all the same with `--resume auto --set watch.collapse=warn`."
