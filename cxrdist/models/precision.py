"""The type that matrix products are computed in."""

import torch

AUTOCAST: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the name in a run file; fp32 is computed without autocast."""
