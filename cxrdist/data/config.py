"""How packed images become the backbone's input, as configuration; light, so that plans need no torch."""

from typing import Literal

from pydantic import Field, field_validator

from cxrdist.config import Config

ProjectionChoice = Literal["frontal", "PA", "AP", "all"]
Fit = Literal["pad", "crop", "squash"]


class AugmentConfig(Config):
    """Random changes of a training image.  All zero (and `zoom` [1, 1]) means none."""

    rotate: float = Field(default=7.0, ge=0, le=180)
    """Largest rotation, degrees, either way."""

    shift: float = Field(default=0.05, ge=0, le=0.5)
    """Largest shift along each axis, as a share of the side."""

    zoom: tuple[float, float] = (0.9, 1.1)
    """Range of the scale factor; above 1 crops, below 1 shows a black border."""

    brightness: float = Field(default=0.1, ge=0, le=1)
    """Largest change of brightness, as a share of the full range, either way."""

    contrast: float = Field(default=0.2, ge=0, lt=1)
    """Largest relative change of contrast, either way."""

    flip: bool = False
    """Mirror half of the images.  Off: a mirrored chest has its heart on the wrong side (laterality is a finding)."""

    @field_validator("zoom")
    @classmethod
    def _rising(cls, zoom: tuple[float, float]) -> tuple[float, float]:
        if not 0 < zoom[0] <= zoom[1]:
            raise ValueError(f"must be two positive numbers in rising order, got {list(zoom)}.")
        return zoom


class InputConfig(Config):
    """How packed images become the backbone's input."""

    image_size: int = Field(default=224, ge=16)
    """Side of the square input, pixels."""

    fit: Fit = "pad"
    """How an image that is not square becomes so."""

    augment: AugmentConfig = AugmentConfig()
    """Random changes in training; validation and test images are never changed."""

    projection: ProjectionChoice = "frontal"
    """Which projections take part."""

    workers: int = Field(default=2, ge=0)
    """Reading processes per rank; 0 reads in the training process.  Changes no result."""
