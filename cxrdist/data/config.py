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


class CropConfig(Config):
    """Random crops of an image, for methods that compare several of them.  All zero keeps the crop's own grey levels.

    Radiographs are grey, upright and asymmetric: there is no hue, no vertical flip, and no mirror unless asked for.
    Scales are milder than natural images', whose subject fills the picture: a crop of a twentieth of a chest holds
    nothing that another such crop must agree with.  Both large crops are drawn alike; BYOL, MoCo v3 and DINO blur one
    always and the other in a tenth of the cases, and solarise the latter, which would invert grey levels that mean
    density in a radiograph.
    """

    scale: tuple[float, float] = (0.3, 1.0)
    """Range of the crop's share of the image's area, in (0, 1]."""

    ratio: tuple[float, float] = (0.8, 1.25)
    """Range of the crop's width over its height."""

    rotate: float = Field(default=10.0, ge=0, le=180)
    """Largest rotation, degrees, either way."""

    brightness: float = Field(default=0.1, ge=0, le=1)
    """Largest change of brightness, as a share of the full range, either way."""

    contrast: float = Field(default=0.3, ge=0, lt=1)
    """Largest relative change of contrast, either way."""

    gamma: float = Field(default=1.5, ge=1)
    """Grey levels are raised to a power between 1 / `gamma` and `gamma`: another exposure, another look-up table."""

    blur: float = Field(default=0.5, ge=0, le=1)
    """Share of the crops that are blurred (Chen et al. 2020, SimCLR)."""

    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of a crop of 224, in proportion for other sizes."""

    noise: float = Field(default=0.02, ge=0, le=1)
    """Largest standard deviation of added noise, as a share of the full range."""

    flip: bool = False
    """Mirror half of the crops.  Off: a mirrored chest has its heart on the wrong side (laterality is a finding)."""

    @field_validator("scale", "ratio", "blur_sigma")
    @classmethod
    def _rising(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if not 0 < limits[0] <= limits[1]:
            raise ValueError(f"must be two positive numbers in rising order, got {list(limits)}.")
        return limits

    @field_validator("scale")
    @classmethod
    def _inside(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[1] > 1:
            raise ValueError(f"must be shares of the image's area, at most 1, got {list(scale)}.")
        return scale


class LocalCropsConfig(CropConfig):
    """Small crops beside the two large ones (Caron et al. 2020, SwAV), seen by the student only."""

    count: int = Field(default=8, ge=0)
    """How many of each image; 0 makes none, whatever else is set here."""

    size: int = Field(default=96, ge=16)
    """Side of the square crop, pixels."""

    scale: tuple[float, float] = (0.1, 0.3)
    """Range of the crop's share of the image's area, in (0, 1]."""


Positives = Literal["image", "study", "patient"]


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
