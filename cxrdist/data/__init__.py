"""Shards in: which samples a global batch holds, where their bytes lie, and how they become tensors."""
