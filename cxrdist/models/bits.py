"""Whether two tensors are the same to the last bit."""

import torch


def same_bits(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    """Return whether both have one type, one shape and the same bytes: -0 is not 0, and NaN is itself."""
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
