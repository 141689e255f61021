"""What a method sees of the training images, and how its batches may be divided."""

from dataclasses import replace
from functools import partial

from cxrdist.data.crops import CropImages
from cxrdist.data.loader import TrainingImages
from cxrdist.data.samples import Samples
from cxrdist.log import get_logger
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.coupled import check_division, divisor
from cxrdist.pretrain.methods import CoupledConfig
from cxrdist.pretrain.supervision import Supervision
from cxrdist.train.batches import Source, training_source
from cxrdist.world import World

log = get_logger(__name__)


def source_of(
    config: PretrainConfig, samples: Samples, world: World, *, supervision: Supervision | None = None
) -> Source:
    """Return the source of a run's batches: crops for methods that compare them, whole images for the others.

    Targets are those of a `supervision`; without, there are none.

    Raises:
        UsageError: If the method asks for pairs of images that these samples do not have, or a step's images would be
            compared in parts.
    """
    method, steps = config.method, config.train.steps
    if not isinstance(method, CoupledConfig):
        targets = samples.values([]) if supervision is None else supervision.targets
        images = TrainingImages(samples, targets, config.input, config.seed)
        return training_source(images, world, steps=steps)
    crops = CropImages(
        samples,
        config.input,
        config.seed,
        crops=method.crops,
        local=getattr(method, "local_crops", None),
        positives=getattr(method, "positives", "image"),
    )
    if crops.partners is not None and world.is_main:
        log.info("%.0f %% of the images have a partner of the same %s.", 100 * crops.partners.share, crops.positives)
    source = training_source(crops, world, steps=steps)
    return replace(source, multiple_of=divisor(config, world.world_size), check=partial(check_division, config))
