"""What values one name may have in a sweep, and how a uniform number becomes one of them."""

import math
from typing import Annotated, Any, Self

from pydantic import Field, model_serializer, model_validator

from cxrdist.config import Config, Tree

Ends = tuple[float, float]
WholeEnds = tuple[int, int]
Listed = Annotated[list[Any], Field(min_length=1)]


class Space(Config):
    """The values of one name: one of these."""

    uniform: Ends | None = None
    """Between two numbers, all alike."""

    loguniform: Ends | None = None
    """Between two positive numbers, every factor alike: for rates."""

    int: WholeEnds | None = None
    """Whole numbers between two, both of them among these."""

    logint: WholeEnds | None = None
    """The same, every factor alike."""

    choice: Listed | None = None
    """One of a list, drawn."""

    grid: Listed | None = None
    """Each of a list: every draw is made once for every combination of all grids."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, tree: Any) -> Any:
        # A later change may have replaced a kind by another: {loguniform: null, choice: [...]}.
        return {name: one for name, one in tree.items() if one is not None} if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = sorted(self.model_fields_set)
        if len(given) != 1:
            raise ValueError(
                f"must be one of {', '.join(Space.model_fields)}, got {' and '.join(given) or 'none of them'}. "
                "Set one that is given elsewhere to null."
            )
        value = getattr(self, self.kind)
        if self.is_listed:
            if any(value[i] in value[:i] for i in range(len(value))):
                raise ValueError(f"must list each value once, got {value}.")
        elif not value[0] < value[1]:
            raise ValueError(f"must have its ends in rising order, got {list(value)}.")
        elif self.is_log and value[0] <= 0:
            raise ValueError(f"must have positive ends, got {list(value)}.")
        return self

    @model_serializer
    def _given(self) -> Tree:
        value = getattr(self, self.kind)
        return {self.kind: list(value)}

    @property
    def kind(self) -> str:
        """Return the name of its kind."""
        return next(iter(self.model_fields_set))

    @property
    def is_listed(self) -> bool:
        """Whether its values are a list."""
        return self.kind in ("choice", "grid")

    @property
    def is_log(self) -> bool:
        """Whether factors count, and not differences."""
        return self.kind in ("loguniform", "logint")

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers of a range."""
        return self.kind in ("int", "logint")

    @property
    def values(self) -> list[Any]:
        """Return the list of a choice or a grid, else the two ends."""
        return list(getattr(self, self.kind))

    def at(self, share: float) -> Any:
        """Return the value at `share` in [0, 1) of the space: uniform shares give the draws of the space."""
        if self.is_listed:
            return self.values[int(share * len(self.values))]
        low, high = self.values
        if self.is_whole:
            # Each whole number has the part of the range that is rounded to it, so that ends are drawn as others are.
            low, high = low - 0.5, high + 0.5
        if self.is_log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        if self.is_whole:
            return self.inside(round(value))
        # Six digits: what a file says is what was drawn, on every machine.
        return self.inside(float(f"{value:.6g}"))

    def share(self, value: Any) -> float:
        """Return where in [0, 1] of the space `value` lies, for figures and the like; a list's values are spread."""
        if self.is_listed:
            return self.values.index(value) / max(len(self.values) - 1, 1)
        low, high = self.values
        if self.is_log:
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    def inside(self, value: float) -> Any:
        """Return the number nearest to `value` that is in the range."""
        low, high = self.values
        return min(max(value, low), high)
