"""torchrun: the same file on every host, without a scheduler."""

from cxrdist.launch.request import Request
from cxrdist.launch.shell import check_hosts, check_line, fill, quote, read_shipped, this_file, this_run, with_head

SHIPPED = "torchrun/train.sh"
HOST = r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:\d+)?"


def render_torchrun(request: Request) -> str:
    """Return ``launch/torchrun/train.sh`` with one run filled in; without hosts in the request HEAD is given at start.

    Raises:
        UsageError: If there are hosts, but neither one, the head, nor one for each machine.
    """
    hosts = check_hosts(request, HOST, first_alone=True)
    lines = [
        f"GPUS_PER_NODE={request.ranks_per_node} NODES=${{NODES:-{request.nodes}}}",
        f"HEAD=${{HEAD:-{''.join(hosts[:1])}}}",
        *this_run(request, request.words),
    ]
    return with_head(fill(read_shipped(SHIPPED), lines), _head(request, hosts))


def _head(request: Request, hosts: tuple[str, ...]) -> list[str]:
    file, out = check_line("RUN.yaml", str(request.file)), check_line("`--run-out`", str(request.out))
    this, that_is = this_file(request)
    several = request.nodes > 1
    first = hosts[0].partition(":")[0] if hosts else "the first host"
    if not several:
        start = [f"Start: bash {this}{that_is}"]
    elif hosts:
        start = [f"Start, on {first} and every other host: bash {this}{that_is}"]
    else:
        start = [
            f"Start, on every host: HEAD=host1 bash {this}{that_is}",
            "  host1 is the name of the first host as `hostname` prints it there.",
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
        '  torchrun always shows a traceback then, and ends with 1: look for "Stopped at step" above it.',
        *(
            ["  The other hosts only say that they lost the connection: that is the end in good order."]
            if several
            else []
        ),
        "Go on: start it again.",
        *([lost] if several else []),
    ]
