"""An all-reduce between machines, as a script: each node runs this text, whatever version of this program it has.

Arguments: rank, ranks, backend, MiB, seconds.  MASTER_ADDR and MASTER_PORT say where rank 0 is.  Each step that is
reached prints a line of JSON; the last one tells where a rank that does not end is waiting.
"""

import json
import signal
import sys
import time
from datetime import timedelta
from typing import Any

TIMED = 3


def main(rank: int, ranks: int, backend: str, mebibytes: int, limit_s: float) -> None:
    """Join the others, sum a tensor over all ranks, check every element and tell how long it took."""
    signal.alarm(int(limit_s) + 5)  # its own end, should the one who waits for it be gone
    tell(step="started")
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    tell(step="loaded torch", gpus=gpus, torch=torch.__version__)
    device = torch.device("cuda:0" if backend == "nccl" else "cpu")
    dist.init_process_group(backend, rank=rank, world_size=ranks, timeout=timedelta(seconds=limit_s))
    tell(step="met the others")
    times = []
    for turn in range(1 + TIMED):
        values = torch.full((mebibytes * 2**18,), float(rank + 1), device=device)
        dist.all_reduce(torch.ones(1, device=device))  # all begin together
        if backend == "nccl":
            torch.cuda.synchronize()
        before = time.perf_counter()
        dist.all_reduce(values)
        if backend == "nccl":
            torch.cuda.synchronize()
        if turn:  # the first makes the connections
            times.append(time.perf_counter() - before)
    right = bool((values == ranks * (ranks + 1) / 2).all())
    dist.all_reduce(torch.ones(1, device=device))
    tell(step="reduced", right=right, seconds=min(times))
    dist.destroy_process_group()


def tell(**facts: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
