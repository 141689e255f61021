"""Small tasks of the methods on pairs of crops, and their batches."""

import torch
from tiny_nets import SIZE, tiny_model

from cxrdist.pretrain.build import TASKS
from cxrdist.pretrain.methods import ByolConfig, MocoV2Config, MocoV3Config, SimclrConfig, SwavConfig
from cxrdist.pretrain.paired import PairedTask

HEAD = {"hidden_width": 24, "width": 8}
CONFIGS = {
    "simclr": SimclrConfig(**HEAD),
    "moco_v2": MocoV2Config(queue=20, **HEAD),
    "moco_v3": MocoV3Config(**HEAD),
    "byol": ByolConfig(**HEAD),
    "swav": SwavConfig(prototypes=10, freeze_prototypes=0.25, **HEAD),
}
TAUGHT = ("moco_v2", "moco_v3", "byol")


def paired_task(
    method: str, family: str = "densenet", *, fresh: bool = True, apart: bool = True, **changes
) -> PairedTask:
    """Return the same task at every call; the teacher, if any, is elsewhere than the trained network if `apart`."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = CONFIGS[method].model_copy(update=changes)
        task = TASKS[method](tiny_model(family), config, fresh=fresh)
        for name, parameter in task.named_parameters():
            if apart and name.startswith("teacher") and parameter.ndim > 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1 * float(parameter.std()))
    return task


def paired_batch(method: str, images: int = 8, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a batch of crops, smooth enough that a network sees more than noise."""
    generator = torch.Generator().manual_seed(seed)

    def crops(count: int) -> torch.Tensor:
        coarse = torch.rand(images, count, 4, 4, generator=generator)
        large = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
        return (large * 255).to(torch.uint8).unsqueeze(2)

    batch = {"image": crops(2), "seed": torch.arange(images), "sample": torch.arange(images)}
    return batch | ({"local": crops(3)} if method == "swav" else {})
