"""What a user decides about packing."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from cxrdist.config import Config
from cxrdist.datasets.records import ProjectionFilter
from cxrdist.datasets.shard_format import Preprocessing
from cxrdist.dicom import BurnedInPolicy, Equalize

MOST_SAMPLES_PER_SHARD = 1000
FEWEST_SAMPLES_PER_SHARD = 100
SHARDS_WANTED = 64
"""A small dataset is cut into about this many shards, so that many workers have one each, now and when training."""


class PackOptions(Config):
    """How images become shards.  `workers`, `max_reject`, `id_map` change no byte of the shard folder."""

    size: int = Field(512, ge=16)
    """Pixels of the shorter side; the aspect is kept and nothing is ever enlarged."""
    format: Literal["jpeg", "png"] = "jpeg"
    bits: Literal[8, 16] = 8
    """Grey levels as a power of two; 16 needs ``format: png``."""
    quality: int = Field(95, ge=1, le=100)
    """JPEG quality; without meaning for PNG."""
    projection: ProjectionFilter = "frontal"
    equalize: Equalize = "none"
    """Spread the grey levels by their histogram, in 8 bits: over the whole picture (global), in 8 x 8 tiles (clahe), or
    prepare the stored values just as Tayebi Arasteh et al. 2024 did, squeezed into a square (tayebi2024)."""
    burned_in_text: BurnedInPolicy | None = None
    """What becomes of images with text in their pixels, seen or declared by the header.  None: what the fact file says
    of text that is seen, and reject where the header declares it."""
    samples_per_shard: int | None = Field(None, ge=1)
    """None decides by the number of images: 1000, or fewer when that made fewer than 64 shards, but at least 100."""
    max_reject: float = Field(0.05, ge=0, le=1)
    """Stop when more than this share of the images is missing or cannot be read."""
    workers: int = Field(1, ge=1)
    id_key: Path | None = None
    """File with the key of the pseudonyms, made if it is not there; None is `pseudonyms.default_id_key`."""
    id_map: Path | None = None
    """Private table from source files to pseudonyms; None is beside the id key."""

    @model_validator(mode="after")
    def _deep_grey_needs_png_as_it_is(self) -> Self:
        if self.bits == 16 and self.format == "jpeg":
            raise ValueError("`bits` 16 needs `format` png, got jpeg")
        if self.bits == 16 and self.equalize != "none":
            raise ValueError(f"`bits` 16 needs `equalize` none, got {self.equalize}, which leaves 8 bits")
        return self

    def preprocessing(self, text_seen: BurnedInPolicy = "reject") -> Preprocessing:
        """Return the part of the options that readers of the shards need to know.

        `text_seen` is the dataset's policy for text that is seen in the pixels, where the user names none.
        """
        return Preprocessing(
            size=self.size,
            format=self.format,
            bits=self.bits,
            quality=self.quality if self.format == "jpeg" else None,
            projection=self.projection,
            equalize=self.equalize,
            burned_in_text=self.burned_in_text or text_seen,
            declared_text=self.burned_in_text or "reject",
        )

    def shard_length(self, images: int) -> int:
        """Return how many samples a shard holds when `images` are packed; a pure function of both."""
        if self.samples_per_shard is not None:
            return self.samples_per_shard
        return min(MOST_SAMPLES_PER_SHARD, max(FEWEST_SAMPLES_PER_SHARD, -(-images // SHARDS_WANTED)))
