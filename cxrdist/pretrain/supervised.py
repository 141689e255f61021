"""Supervised pretraining on several datasets at once: a backbone for all, a linear head for each.

As in Ark (Ma et al. 2023, "Foundation Ark: Accruing and Reusing Knowledge for Superior and Robust Performance"), which
goes on from there to a teacher.  Ark takes the datasets in turns; here every batch has images of all of them, in the
proportions of the training set, so the order of the images is that of every other method.

Shapes: B images, K columns.
"""

import torch

from cxrdist.data.loader import Batch
from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.batchnorm import join_batch_norm
from cxrdist.pretrain.methods import SupervisedConfig
from cxrdist.pretrain.supervision import Supervision
from cxrdist.pretrain.task import PretrainTask
from cxrdist.train.loss_config import LossConfig
from cxrdist.train.losses import MultiLabelLoss


class SupervisedTask(PretrainTask):
    """The heads are columns of one linear layer, the classifier of the network.

    They share no weight, so this is the same as a layer for each; but each takes part in every step on every rank,
    which ranks that exchange gradients or weights in an order of their own must rely on, whichever datasets a
    micro-batch has images of.  A column whose targets are all masked gets a gradient of zero.
    """

    def __init__(
        self, model: RadiographModel, config: SupervisedConfig, *, fresh: bool, supervision: Supervision
    ) -> None:
        """Wrap `model`, whose classifier has the K columns of `supervision`; how `fresh` it is makes no difference."""
        super().__init__()
        self.model = model
        self.config = config
        # No images are compared: joint statistics let the result not depend on the number of ranks.
        join_batch_norm(model.net)
        self.criterion = MultiLabelLoss(
            LossConfig(), pos_weight=supervision.pos_weight, known_share=supervision.known_share
        )

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the weighted cross-entropy over the known targets (B, K), a scalar."""
        loss: torch.Tensor = self.criterion(self.model(batch["image"]), batch["target"])
        return loss
