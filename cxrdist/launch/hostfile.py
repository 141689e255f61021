"""DeepSpeed's launcher over ssh, with the hostfile inside."""

import re

from cxrdist.errors import UsageError
from cxrdist.launch.request import Request
from cxrdist.launch.shell import check_hosts, check_line, fill, quote, read_shipped, this_file, this_run, with_head

SHIPPED = "hostfile/train.sh"
HOST = r"[A-Za-z0-9_][A-Za-z0-9_.@-]*"
"""What a hostfile and pdsh take for one host; pdsh makes several of brackets and commas."""
FOLDER = r"[A-Za-z0-9_@+=:,./-]+"
"""What DeepSpeed hands on to a shell as it is."""


def render_hostfile(request: Request) -> str:
    """Return ``launch/hostfile/train.sh`` with one run and its hosts filled in.

    Raises:
        UsageError: If the request does not have a host for each machine, or if the folder's name is not a plain one.
    """
    hosts = check_hosts(request, HOST)
    if re.fullmatch(FOLDER, str(request.here)) is None:
        raise UsageError(
            f"The name of the folder must be letters, digits and _ @ + = : , . / - here, got {str(request.here)!r}. "
            "DeepSpeed does not quote it: start in another folder, or take `torchrun`."
        )
    cpus = [] if request.gpus_per_node else ["export DS_ACCELERATOR=cpu"]
    lines = [
        *this_run(request, request.words),
        *cpus,
        "cat >\"$own/hostfile\" <<'HOSTS'",
        *(f"{host} slots={request.ranks_per_node}" for host in hosts),
        "HOSTS",
        'set -- "$own/hostfile" "$@"',
    ]
    return with_head(fill(read_shipped(SHIPPED), lines), _head(request, hosts))


def _head(request: Request, hosts: tuple[str, ...]) -> list[str]:
    out = check_line("`--run-out`", str(request.out))
    this, that_is = this_file(request)
    return [
        f"{request.kind} {check_line('RUN.yaml', str(request.file))}: {request.ranks} processes on {', '.join(hosts)}, "
        "by DeepSpeed over ssh.",
        "",
        f"Start, on {hosts[0]}: bash {this}{that_is}",
        "  It needs pdsh there, and ssh without a password from there to every host, itself too.",
        f"Watch: it prints what all hosts print; tensorboard --logdir {quote([f'{out}/tb'])}",
        "Stop: Ctrl-C, or `kill -TERM` of this script; the run saves a checkpoint. Never signal `deepspeed` itself: it",
        "  would end every DeepSpeed run that you have on these hosts.",
        "Go on: start it again.",
    ]
