"""Random choices that belong to an image: from its own seed, so the same on any rank and in any batch."""

import torch


def permutations(seeds: torch.Tensor, places: int) -> torch.Tensor:
    """Return a permutation of ``range(places)`` for each of `seeds` (B,), from it alone: (B, places) int64, CPU."""
    noise = torch.stack([torch.rand(places, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()])
    return noise.argsort(dim=1)
