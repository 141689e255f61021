"""Files for ``ray up``: a Ray cluster on a lab's own machines, on AWS, on Google Cloud, and the run's command for it.

The command is given on a laptop and runs on the head.  On the lab's own machines the first is the head and trains too;
in a cloud the head is a small machine more, without GPU, and shards and runs are on an NFS server.
"""

import getpass
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from cxrdist.config import Tree
from cxrdist.errors import UsageError
from cxrdist.launch.instances import AWS_DEFAULT, GCP_DEFAULT, Machine, aws_machine, gcp_machine
from cxrdist.launch.request import Request
from cxrdist.launch.shell import check_hosts, check_line, quote
from cxrdist.launch.tree import dump, read_trees

DASHBOARD = "http://127.0.0.1:8265"
"""The head's, where ``ray dashboard`` brings it."""
START = ("head_start_ray_commands", "worker_start_ray_commands")
HOST = r"[A-Za-z0-9][A-Za-z0-9._:-]*"
IMAGE = r"[A-Za-z0-9][A-Za-z0-9._/:@-]*"
FOLDER = r"(?:/[A-Za-z0-9._-]+)+"
USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
SERVER = rf"{HOST}:(?:/|{FOLDER})"
"""What is written into lines of shell has nothing in it that a shell would take apart."""
AWS_ONCE = (
    "pip install boto3; aws configure  # once: the account",
    "aws iam attach-role-policy --role-name ray-autoscaler-v1 --policy-arn "
    "arn:aws:iam::aws:policy/AmazonSSMReadOnlyAccess  # once, after the first `ray up`",
)
GCP_ONCE = (
    "pip install google-api-python-client google-auth-httplib2 cryptography  # once",
    "gcloud auth application-default login  # once: the account",
)
"""What an account or project needs before; launch/ray/*.yaml say more."""
SHARED, NFS = "/shared", "nfs.example:/"
"""Of the shipped files."""


def render_ray_local(request: Request) -> str:
    """Return the file for machines that are there; the first of `hosts` is the head, and trains like the others.

    Raises:
        UsageError: If hosts are missing, named twice, not as many as the nodes, or not names or addresses.
    """
    tree = _read("local", request)
    head, *others = hosts = check_hosts(request, HOST, example="; the first is the head.")
    tree["provider"] |= {"head_ip": head, "worker_ips": others}
    tree["auth"] = {"ssh_user": _user(request.ssh_user or getpass.getuser())}
    if request.ssh_key:
        tree["auth"]["ssh_private_key"] = check_line("`--ssh-key`", request.ssh_key)
    tree |= {"min_workers": len(others), "max_workers": len(others)}
    programs = f"export PATH={quote([str(request.bin)])}:$PATH"
    for key in START:
        # A line each: one of the user's may end with a comment.
        tree[key] = ["\n".join([*request.setup, programs, command]) for command in tree[key]]
        tree[key][-1] += f" --num-cpus={request.cpus_per_node} --num-gpus={request.gpus_per_node}"
    # Of the commands that Ray itself gives there, `ray down`'s `ray stop` must find its program.
    tree["setup_commands"] += [
        f"mkdir -p ~/.local/bin && ln -sfn {quote([str(request.bin / 'ray')])} ~/.local/bin/ray",
        "case :$PATH: in *:$HOME/.local/bin:*) ;; *) echo 'export PATH=$PATH:$HOME/.local/bin' >> ~/.bashrc ;; esac",
    ]
    out = request.out if request.out.is_absolute() else request.here / request.out
    machines = f"{len(hosts)} machines of yours: {', '.join(hosts)}"
    return _dump(
        tree,
        request,
        PurePosixPath(request.here),
        out.as_posix(),
        machines,
        "the others end by themselves a minute after the head",
    )


def render_ray_aws(request: Request) -> str:
    """Return the file for AWS.

    Raises:
        UsageError: If what only the user can know is missing, or the instance type does not have what is asked for.
    """
    tree = _read("aws", request)
    instance, machine = _machine(request, aws_machine, AWS_DEFAULT)
    tree["available_node_types"]["gpu"]["node_config"]["InstanceType"] = instance
    if request.region:
        place = _written("--region", request.region, r"[a-z]+(-[a-z]+)+-\d[a-z]?", "a region or a zone", "us-east-1a")
        tree["provider"]["region"] = place.rstrip("abcdefghijklmnopqrstuvwxyz")
        if place[-1].isalpha():
            tree["provider"]["availability_zone"] = place
    what = f"{request.nodes} x {instance} on AWS, {tree['provider']['region']}"
    return _cloud(tree, request, machine, what, AWS_ONCE)


def render_ray_gcp(request: Request) -> str:
    """Return the file for Google Cloud.

    Raises:
        UsageError: If what only the user can know is missing, or the machine type does not have what is asked for.
    """
    tree = _read("gcp", request)
    instance, machine = _machine(request, gcp_machine, GCP_DEFAULT)
    tree["available_node_types"]["gpu"]["node_config"]["machineType"] = instance
    project = _written(
        "--project", request.project, r"[a-z][a-z0-9:.-]*", "the ID of the Google Cloud project", "lab-123"
    )
    tree["provider"]["project_id"] = project
    if request.region:
        zone = _written("--region", request.region, r"[a-z]+(-[a-z]+\d*)+-[a-z]", "a zone", "us-central1-a")
        tree["provider"] |= {"region": zone[:-2], "availability_zone": zone}
    zone = tree["provider"]["availability_zone"]
    return _cloud(tree, request, machine, f"{request.nodes} x {instance} on Google Cloud, {zone}", GCP_ONCE)


def _read(name: str, request: Request) -> Tree:
    (tree,) = read_trees(f"ray/{name}.yaml")
    return tree | {"cluster_name": request.name}


def _cloud(tree: Tree, request: Request, machine: Machine, what: str, once: Sequence[str]) -> str:
    """Fill in what both clouds have in common."""
    image = _written(
        "--image",
        request.image,
        IMAGE,
        "the container image with cxrdist in a registry",
        "registry.example/cxrdist:gpu",
    )
    nfs = _written("--nfs", request.nfs, SERVER, "SERVER:/PATH of the NFS server with shards and runs", "10.0.0.2:/cxr")
    mount = _written("--mount", request.mount or SHARED, FOLDER, "a whole path without blanks", SHARED)
    out = PurePosixPath(mount) / request.out.as_posix()
    if not out.is_relative_to(f"{mount}/runs") or out == PurePosixPath(f"{mount}/runs"):
        raise UsageError(
            f"`--run-out` must be below {mount}/runs, which all machines of the cluster share, got {str(out)!r}. "
            f"Example: --run-out {mount}/runs/{request.name}"
        )
    # A study that waits for machines gets them when it needs them; anything else finds them there.
    worker = tree["available_node_types"]["gpu"]
    worker |= {"min_workers": 0 if request.grows else request.nodes, "max_workers": request.nodes}
    worker["resources"] = {"CPU": machine.cpus, "GPU": machine.gpus}
    request = replace(request, cpus_per_node=min(request.cpus_per_node, machine.cpus))
    tree["max_workers"] = request.nodes
    if request.ssh_user:
        tree["auth"]["ssh_user"] = _user(request.ssh_user)
    docker = tree["docker"]
    if not machine.gpus:
        # Without a driver Docker starts no container with GPUs; nor has it one by NVIDIA's runtime.
        runtime = [option for option in docker["head_run_options"] if option.startswith("--runtime=")]
        docker["worker_run_options"] = [one for one in docker["worker_run_options"] if not one.startswith("--gpus")]
        docker["worker_run_options"] += runtime
    docker["image"] = image
    docker["run_options"] = [option.replace(SHARED, mount) for option in docker["run_options"]]
    tree["initialization_commands"] = [
        *(f"{line}\n" for line in request.setup),  # one that ends with a comment must not hide what Ray puts behind it
        *(
            command.replace(SHARED, mount).replace(NFS, nfs).replace("_mount/cxrdist/", f"_mount/{request.name}/")
            for command in tree["initialization_commands"]
        ),
    ]
    return _dump(tree, request, PurePosixPath(mount), str(out), what, "everything ends, and costs no more", once)


def _machine(request: Request, known: Callable[[str], Machine | None], defaults: dict[int, str]) -> tuple[str, Machine]:
    """Return the machine's type and what it has."""
    if request.instance is None:
        if request.gpus_per_node not in defaults:
            choices = ", ".join(map(str, defaults))
            raise UsageError(
                f"`--instance` must name the machines, got none for {request.gpus_per_node} GPUs per node; it is only "
                f"chosen for {choices}. Name one, or change `--gpus-per-node`."
            )
        name = defaults[request.gpus_per_node]
    else:
        name = _written("--instance", request.instance, r"[a-z0-9][a-z0-9.-]*", "a type", [*defaults.values()][-1])
    machine = known(name)
    if machine is None:
        return name, Machine(request.cpus_per_node, request.gpus_per_node)
    if machine.gpus != request.gpus_per_node:
        raise UsageError(
            f"`--gpus-per-node` must be what the machine has, got {request.gpus_per_node} for {name} with "
            f"{machine.gpus}. Change it, or `--instance`."
        )
    if machine.cpus < request.cpus_per_node and request.cpus_asked:
        raise UsageError(
            f"`--cpus-per-node` must be at most what the machine has, got {request.cpus_per_node} for {name} with "
            f"{machine.cpus}. Change it, or `--instance`."
        )
    return name, machine


def _user(name: str) -> str:
    return _written("--ssh-user", name, USER, "a name", "ubuntu")


def _written(option: str, value: str | None, pattern: str, rule: str, example: str) -> str:
    """Return what an option was given.

    Raises:
        UsageError: If it was not, or is something else.
    """
    if not value or re.fullmatch(pattern, value) is None:
        got = repr(value) if value else "none"
        raise UsageError(f"`{option}` must be {rule}, got {got}. Example: {option} {example}")
    return value


def _dump(
    tree: Tree,
    request: Request,
    start: PurePosixPath,
    out: str,
    machines: str,
    end: str,
    once: Sequence[str] = (),
) -> str:
    file = quote([str(request.target_file or f"{request.name}.yaml")])
    place = "In this folder:" if request.target_file else f"This file is {file} below, and in this folder:"
    command = quote(["cxrdist", *request.ray_words_for(request.file, out, address=DASHBOARD, start=start)])
    head = [
        f"A Ray cluster for {request.kind} {request.file}: {machines}.",
        "",
        place,
        "",
        f"  cd {quote([str(request.here)])}",
        *(f"  {line}" for line in once),
        "  (umask 077; ray get-auth-token --generate >/dev/null)  # once: the secret of your clusters",
        "  export RAY_AUTH_MODE=token",
        f"  ray up -y {file}  # once more: Ray starts anew and ends what runs",
        f"  ray dashboard {file}  # leave it open; watch at {DASHBOARD}",
        f"  ray exec {file} 'RAY_AUTH_MODE=token ray status'  # until the machines are there",
        f"  ray monitor {file}  # or why one does not come",
        f"  {command}",
        f"  ray down -y {file}  # {end}",
        "",
        "Made by `cxrdist launch render`; why each value is as it is stands in launch/ray.",
    ]
    return dump([tree], [check_line("What is launched", line) for line in head])
