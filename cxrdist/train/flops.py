"""Floating point operations of a training step, counted where they are called and, for vision transformers, by formula.

A multiplication and an addition are two operations.  Only matrix products, convolutions and attention are counted, as
in every published figure.
"""

from torch import nn

from cxrdist.train.config import Precision
from cxrdist.train.dryrun import BuildTask, MakeBatch, imagine, profile_pass


def flops_per_image(build_task: BuildTask, make_batch: MakeBatch, *, precision: Precision = "fp32") -> int:
    """Return the operations of a forward and a backward pass per image, nothing computed and nothing allocated.

    What a task computes again where it checkpoints activations is counted: up to a forward pass more.
    """
    # Two images, as a task may mix pairs.
    return profile_pass(imagine(build_task), make_batch, 2, precision=precision).flops


def vit_flops(*, matrices: int, tokens: int, width: int, depth: int) -> int:
    """Return the operations of a forward and a backward pass of a vision transformer over one image.

    ``6 matrices tokens``: each weight of a matrix is in one multiplication and addition per token forward and in two
    backward (Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1).  Attention multiplies N x N
    by N x D twice forward, and five times backward, of which one makes its weights again (Dao 2022).

    Args:
        matrices: Weights of the blocks' matrices.
        tokens: N, prefix tokens included.
        width: D.
        depth: Blocks.
    """
    return 6 * matrices * tokens + depth * 7 * 2 * tokens**2 * width


def block_matrices(net: nn.Module) -> int:
    """Return how many weights the matrices in the blocks of a timm vision transformer have."""
    return sum(p.numel() for name, p in net.named_parameters() if name.startswith("blocks.") and p.ndim == 2)
