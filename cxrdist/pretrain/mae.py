"""Masked autoencoder (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners").

Shapes: B images, L patches, N tokens (patches and prefix), D width, P values of a patch.
"""

import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cxrdist.data.loader import Batch
from cxrdist.errors import UsageError
from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.ahead import look_ahead
from cxrdist.pretrain.methods import MaeConfig
from cxrdist.pretrain.seeded import permutations
from cxrdist.pretrain.task import PretrainTask


class MaeTask(PretrainTask):
    """Encoder on the visible patches, light decoder on all, mean squared error on the masked ones."""

    def __init__(self, model: RadiographModel, config: MaeConfig, *, fresh: bool) -> None:
        """Wrap `model`; a `fresh` encoder gets the paper's initialisation, loaded weights are left as they are.

        Raises:
            UsageError: If the backbone is no plain vision transformer.
        """
        super().__init__()
        vit = model.net
        if not isinstance(vit, VisionTransformer):
            raise UsageError(
                f"`method` 'mae' needs a vision transformer, got {type(vit).__name__}. "
                "Choose a timm `vit_...` backbone."
            )
        self.model = model
        self.config = config
        self.patch = vit.patch_embed.patch_size[0]
        self.prefix = vit.num_prefix_tokens
        self.patches = vit.patch_embed.num_patches
        self.encoder = MaskedVisionTransformerTIMM(
            vit, weight_initialization="" if fresh else "skip", pos_embed_initialization="skip"
        )
        if fresh and vit.pos_embed is not None:
            # Not left to the encoder: some networks have no position for their prefix tokens.
            utils.initialize_2d_sine_cosine_positional_embedding(
                vit.pos_embed, num_prefix_tokens=vit.pos_embed.shape[1] - self.patches
            )
        self.encoder.mask_token.requires_grad_(False)
        self.decoder_embed = nn.Linear(vit.embed_dim, config.decoder_width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=self.patches,
            embed_dim=config.decoder_width,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
            num_prefix_tokens=self.prefix,
        )
        self.predict = nn.Linear(config.decoder_width, self.patch**2 * 3)
        for parameter in look_ahead(vit).beyond:
            parameter.requires_grad_(False)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean squared error of the masked patches, a scalar."""
        images = self.model.normalise(batch["image"])
        keep, masked = random_masks(batch["seed"], self.patches, self.prefix, self.config.mask_ratio)
        keep, masked = keep.to(images.device), masked.to(images.device)
        encoded = self.encoder.encode(images, idx_keep=keep)
        visible = self.decoder_embed(encoded)
        size = (len(images), self.prefix + self.patches)
        tokens = utils.repeat_token(self.decoder.mask_token, size).to(visible.dtype)
        tokens = utils.set_at_index(tokens, keep, visible)
        decoded = self.decoder.decode(self.decoder.add_pos_embed(tokens))
        predicted = self.predict(utils.get_at_index(decoded, masked)).float()
        target = utils.get_at_index(utils.patchify(images, self.patch), masked - self.prefix)
        if self.config.normalise_patches:
            target = utils.normalize_mean_var(target)
        return (predicted - target).square().mean()


def random_masks(seeds: torch.Tensor, patches: int, prefix: int, ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token indices (kept, masked), each (B, ...), on the CPU; prefix tokens are kept.

    Each image's mask comes from its own seed (B,), so it is the same on any rank and in any batch.
    """
    order = permutations(seeds, patches) + prefix
    kept = min(max(1, patches - round(patches * ratio)), patches - 1)
    always = torch.arange(prefix).expand(len(seeds), prefix)
    return torch.cat([always, order[:, :kept]], dim=1), order[:, kept:]
