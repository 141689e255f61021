"""A RayJob and a RayCluster for KubeRay: the files of ``launch/kuberay`` with one run filled in.

What is known of KubeRay here (1.6): a RayJob's entrypoint is pasted into a ``bash -c`` of the pod that submits it, as
``ray job submit -- ENTRYPOINT ;``; Ray quotes the words that come out and gives them to a shell on the head.  So words
quoted once arrive as they were, but ``$(`` and ``$$``, which Kubernetes itself reads in a container's arguments.
"""

import posixpath
import re
from collections.abc import Iterator

from cxrdist.config import Tree
from cxrdist.errors import UsageError
from cxrdist.launch.carried import Carried, carry
from cxrdist.launch.request import Request, seconds_of
from cxrdist.launch.shell import check_line, quote
from cxrdist.launch.tree import dump, read_trees

MOUNT = "/shared"
FILES = "/etc/cxrdist"
"""Where the pods have the run's file."""
TAKEN = (
    *(
        "/",
        "/bin",
        "/dev",
        "/dev/shm",
        "/etc",
        "/home",
        "/home/cxrdist",
        "/lib",
        "/opt",
        "/opt/cxrdist",
        "/proc",
        "/run",
    ),
    *("/sbin", "/sys", "/tmp", "/tmp/ray", "/usr", "/var", FILES),
)
"""Folders that a pod needs as they are."""
OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""What Kubernetes calls an object."""
GPU = "nvidia.com/gpu"
QUEUE = "kueue.x-k8s.io/queue-name"

MEMORY_GIB = {True: 16, False: 4}
"""Of a rank, with and without a GPU."""
SHARED_MEMORY_GIB = {True: 4, False: 1}
"""Of a rank: batches of 16 loading processes."""
RAY_MEMORY_GIB = 4
"""Of a machine, for Ray: its object store of 2 GB, and its processes."""
RAY_CPUS = 1


def render_rayjob(request: Request) -> str:
    """Return a RayJob for the run, and what it needs.

    Raises:
        UsageError: If no image or claim is named, or a path of the run leads to where the pods see nothing.
    """
    mount, carried = _carried(request)
    files, job = read_trees("kuberay/rayjob.yaml")
    _fill_files(files, request.name, carried)
    _fill_object(job, request)
    spec = job["spec"]
    spec["entrypoint"] = quote(_words(carried))
    spec["metadata"] = {"job_name": request.name}
    if request.time:
        spec["activeDeadlineSeconds"] = seconds_of(request.time)
    _fill_cluster(spec["rayClusterSpec"], request, request.name, carried, mount)
    spec["submitterPodTemplate"]["spec"]["containers"][0]["image"] = request.image
    name = request.name
    file = _this_file(request)
    token = f"\"$(kubectl get rayjob {name} -o jsonpath='{{.status.rayClusterName}}')\""
    head = [
        *_about(request, "A job", carried, mount),
        "",
        f"  kubectl apply -f {file}                     start",
        f"  kubectl get rayjob {name}",
        f"  kubectl logs --follow job/{name}     what it says, once its machines are there",
        f"  kubectl delete -f {file}                    stop, and clean up",
        "",
        "Started again after that, it goes on where it stopped.",
        *_dashboard(name, token),
    ]
    return dump([files, job], head)


def render_raycluster(request: Request) -> str:
    """Return a RayCluster that fits the run and has its file; the head says how to start the run there.

    Raises:
        UsageError: As `render_rayjob`.
    """
    mount, carried = _carried(request)
    files, cluster = read_trees("kuberay/raycluster.yaml")
    name = f"{request.name}-cluster"
    _fill_files(files, name, carried)
    _fill_object(cluster, request, name)
    _fill_cluster(cluster["spec"], request, name, carried, mount)
    on_head = f"kubectl exec service/{name}-head-svc -c ray-head --"
    command = check_line("A word of a command in a comment", quote(_words(carried)))
    dashboard = "--address http://127.0.0.1:8265"
    file = _this_file(request)
    head = [
        *_about(request, "A cluster that stays", carried, mount),
        "",
        f"  kubectl apply -f {file}                     start the cluster",
        f"  kubectl get raycluster {name}",
        "",
        "Once it is ready, start the run, which says its number, and see what it says:",
        "",
        f"  {on_head} ray job submit {dashboard} --no-wait -- {command}",
        f"  {on_head} ray job logs {dashboard} --follow NUMBER",
        f"  {on_head} ray job stop {dashboard} NUMBER",
        "",
        f"  kubectl delete -f {file}                    end the cluster",
        "",
        "The same words again go on where it stopped.",
        *_dashboard(name, name),
    ]
    return dump([files, cluster], head)


def _carried(request: Request) -> tuple[str, Carried]:
    """Return where pods see shared storage, and the request as it is for them."""
    wanted = {
        "--image": (request.image, "REGISTRY/cxrdist:gpu"),
        "--claim": (request.claim, "NAME, of `kubectl get pvc`"),
    }
    if missing := [f"`{option} {example}`" for option, (value, example) in wanted.items() if not value]:
        got = "none" if len(missing) == len(wanted) else "one of them"
        raise UsageError(
            f"A launcher for Kubernetes must be given an image and a claim, got {got}. Add {' and '.join(missing)}."
        )
    if any(char.isspace() or not char.isprintable() for char in request.image or ""):
        raise UsageError(f"`--image` must be one word, got {request.image!r}. Example: --image registry/cxrdist:gpu")
    for option, value in (("--claim", request.claim), ("--queue", request.queue)):
        if value and not OBJECT.fullmatch(value):
            raise UsageError(
                f"`{option}` must be a name of Kubernetes, small letters, digits, '-' and '.', got {value!r}. "
                f"`kubectl get {'pvc' if option == '--claim' else 'localqueues'}` lists them."
            )
    mount = posixpath.normpath(request.mount or MOUNT)
    if not re.fullmatch(r"/\w[-./\w]*", mount, re.ASCII) or mount in TAKEN or mount.startswith(f"{FILES}/"):
        raise UsageError(
            f"`--mount` must be a folder of its own in the pods, /NAME, got {request.mount!r}. "
            f"Leave it out for {MOUNT}."
        )
    return mount, carry(request, folder=FILES, mount=mount)


def _words(carried: Carried) -> list[str]:
    there = carried.request
    words = ["cxrdist", *there.ray_words_for(there.file, there.out)]
    if wrong := [word for word in words if "$(" in word or "$$" in word]:
        raise UsageError(
            f"A word of a command on Kubernetes must have neither `$(` nor `$$`, which it would replace, got "
            f"{wrong[0]!r}. Write the value into the run's file."
        )
    return words


def _fill_files(tree: Tree, name: str, carried: Carried) -> None:
    tree["metadata"]["name"] = name
    tree["data"] = carried.files


def _fill_object(tree: Tree, request: Request, name: str | None = None) -> None:
    tree["metadata"]["name"] = name or request.name
    if request.queue:
        tree["metadata"]["labels"][QUEUE] = request.queue
        tree["spec"] = {"suspend": True, **tree["spec"]}


def _fill_cluster(spec: Tree, request: Request, name: str, carried: Carried, mount: str) -> None:
    """Fill in the spec of a RayCluster."""
    group = spec["workerGroupSpecs"][0]
    group |= dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), request.nodes)
    for pod in (spec["headGroupSpec"]["template"]["spec"], group["template"]["spec"]):
        container = pod["containers"][0]
        container |= {"image": request.image, "workingDir": str(carried.start)}
        for variable in container["env"]:
            variable["value"] = variable["value"].replace(MOUNT, mount)
        for place in container["volumeMounts"]:
            if place["name"] == "shared":
                place["mountPath"] = mount
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        volumes["shared"]["persistentVolumeClaim"]["claimName"] = request.claim
        volumes["run"]["configMap"]["name"] = name
    memory, shared = _memory(request)
    group["rayStartParams"]["num-cpus"] = str(request.cpus_per_node)
    held = {"cpu": str(request.cpus_per_node + RAY_CPUS), "memory": f"{memory}Gi"}
    pod = group["template"]["spec"]
    if request.gpus_per_node:
        held[GPU] = str(request.gpus_per_node)
    else:
        del pod["tolerations"]
    pod["containers"][0]["resources"] = {"requests": held, "limits": held}
    next(one for one in pod["volumes"] if one["name"] == "memory")["emptyDir"]["sizeLimit"] = f"{shared}Gi"


def _memory(request: Request) -> tuple[int, int]:
    """Return the GiB of a machine, and how many of them are shared memory at most."""
    has_gpu = request.gpus_per_node > 0
    shared = RAY_MEMORY_GIB // 2 + request.ranks_per_node * SHARED_MEMORY_GIB[has_gpu]
    return RAY_MEMORY_GIB + request.ranks_per_node * MEMORY_GIB[has_gpu] + shared, shared


def _this_file(request: Request) -> str:
    return quote([check_line("`--out`", str(request.target_file or "THIS.yaml"))])


def _about(request: Request, what: str, carried: Carried, mount: str) -> Iterator[str]:
    memory, _ = _memory(request)
    gpus = f"{request.gpus_per_node} GPU{'s' * (request.gpus_per_node != 1)}, " if request.gpus_per_node else ""
    yield (
        f"{what} on Kubernetes, for KubeRay 1.6 or newer: {request.nodes} machine{'s' * (request.nodes != 1)} with "
        f"{gpus}{request.cpus_per_node + RAY_CPUS} CPUs and {memory} GiB each, and a head."
    )
    yield f"Shared storage is the claim {request.claim}, ReadWriteMany; the pods see it as {mount}."
    yield "User 1000 must be able to write there: with a driver for NFS that may have to be seen to by hand."
    yield check_line(
        "The run's folder", f"Relative paths lead from {carried.start}; the run's folder is {carried.request.out}."
    )
    if request.queue:
        yield f"It waits in the Kueue queue {request.queue} until all of it has room, and again if applied again."
    yield "Where pods stay Pending, `kubectl describe pod` says what they wait for."


def _dashboard(name: str, secret: str) -> Iterator[str]:
    yield f"Dashboard: `kubectl port-forward service/{name}-head-svc 8265`, then http://localhost:8265. Its token:"
    yield ""
    yield f"  kubectl get secret {secret} -o jsonpath='{{.data.auth_token}}' | base64 -d"
    yield ""
