"""Which loss over many findings; light, so that plans need no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cxrdist.config import Config


class LossConfig(Config):
    """Which loss; positives are weighed by `class_weights` in all of them."""

    name: Literal["bce", "focal", "asymmetric"] = "bce"
    """Binary cross-entropy, focal loss (Lin et al. 2017) or asymmetric loss (Ridnik et al. 2021).  The papers of the
    last two have no other weights for rare positives: set `class_weights` to none for what is in them."""

    gamma: float = Field(default=2.0, ge=0)
    """Focal: power of the probability of the wrong answer, which the loss is multiplied by."""

    gamma_positive: float = Field(default=0.0, ge=0)
    """Asymmetric: that power for targets of 1."""

    gamma_negative: float = Field(default=4.0, ge=0)
    """Asymmetric: that power for targets of 0."""

    margin: float = Field(default=0.05, ge=0, lt=1)
    """Asymmetric: how much less a negative's probability counts; below it there is no loss."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each known target that is replaced by 1/2."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        others = {"focal": {"gamma"}, "asymmetric": {"gamma_positive", "gamma_negative", "margin"}}
        unused = {name for loss, names in others.items() if loss != self.name for name in names}
        given = sorted(name for name in unused & self.model_fields_set if getattr(self, name) != _default(name))
        if given:
            raise ValueError(f"must not set {', '.join(given)} with `name` {self.name!r}, which does not use it.")
        return self


def _default(name: str) -> float:
    return float(LossConfig.model_fields[name].default)
