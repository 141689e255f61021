"""torchrun: the same file on every host, without a scheduler."""

import re

from cxrdist.errors import UsageError
from cxrdist.launch.request import Request
from cxrdist.launch.shell import check_line, fill, quote, read_shipped, this_run, with_head

SHIPPED = "torchrun/train.sh"
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:\d+)?")


def render_torchrun(request: Request) -> str:
    """Return ``launch/torchrun/train.sh`` with one run filled in; without hosts in the request HEAD is given at start.

    Raises:
        UsageError: If there are hosts, but neither one, the head, nor one for each machine.
    """
    hosts = list(dict.fromkeys(request.hosts))
    if len(hosts) not in {0, 1, request.nodes} or len(hosts) < len(request.hosts):
        raise UsageError(
            f"`--host` must name the first host, or each of {request.nodes} once, got {', '.join(request.hosts)}. "
            "Example: --host host1"
        )
    for host in hosts:
        if not HOST.fullmatch(host):
            raise UsageError(f"`--host` must be a name or an IPv4 address, got {host!r}. Example: --host host1")
    lines = [
        f"GPUS_PER_NODE={request.ranks_per_node} NODES=${{NODES:-{request.nodes}}}",
        f"HEAD=${{HEAD:-{''.join(hosts[:1])}}}",
        *this_run(request, request.words),
    ]
    return with_head(fill(read_shipped(SHIPPED), lines), _head(request, hosts))


def _head(request: Request, hosts: list[str]) -> list[str]:
    file, out = check_line("RUN.yaml", str(request.file)), check_line("`--run-out`", str(request.out))
    several = request.nodes > 1
    first = hosts[0].partition(":")[0] if hosts else "the first host"
    if not several:
        start = ["Start: bash FILE, where FILE is this file."]
    elif hosts:
        start = [f"Start, on {first} and every other host: bash FILE, where FILE is this file."]
    else:
        start = [
            "Start, on every host: HEAD=host1 bash FILE, where FILE is this file,",
            "  and host1 is the name of the first host as `hostname` prints it there.",
        ]
    lost = (
        f"If a host is lost: start it there again. With NODES=1:{request.nodes} before bash the others go on without."
    )
    return [
        f"{request.kind} {file}: {request.ranks} processes on {request.nodes} hosts, by torchrun.",
        "",
        *start,
        f"Watch: tensorboard --logdir {quote([f'{out}/tb'])}",
        f"Stop: Ctrl-C on {first if several else 'it'}, or `kill -TERM` of torchrun there; the run saves a checkpoint.",
        "Go on: start it again.",
        *([lost] if several else []),
    ]
