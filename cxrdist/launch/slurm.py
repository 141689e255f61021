"""SLURM: a batch script with the run and its resources filled in."""

import math

from cxrdist.launch.request import Request
from cxrdist.launch.shell import check_line, fill, quote, read_shipped, this_file, this_run, with_head

TRAIN, TORCHRUN, RAY = "slurm/train.sbatch", "slurm/train-torchrun.sbatch", "slurm/study-ray.sbatch"


def render_slurm(request: Request) -> str:
    """Return ``train.sbatch`` with a training filled in, or ``study-ray.sbatch`` with a study or a sweep."""
    if not request.trains:
        return render_slurm_ray(request)
    return _render(TRAIN, request, request.words, f"{request.ranks} tasks on {request.nodes} nodes")


def render_slurm_torchrun(request: Request) -> str:
    """Return ``train-torchrun.sbatch`` with a training filled in."""
    by = f"{request.ranks} processes on {request.nodes} nodes by torchrun"
    return _render(TORCHRUN, request, request.words, by)


def render_slurm_ray(request: Request) -> str:
    """Return ``study-ray.sbatch`` with a study, a sweep or a training filled in."""
    words = request.ray_words
    at = words.index("--address")
    del words[at : at + 2]  # the script knows it
    return _render(RAY, request, words, f"a Ray cluster of {request.nodes} nodes")


def _render(shipped: str, request: Request, words: list[str], by: str) -> str:
    text = fill(read_shipped(shipped), this_run(request, words), sbatch=_options(request))
    return with_head(text, _head(request, by))


def _options(request: Request) -> dict[str, str | None]:
    options: dict[str, str | None] = {"job-name": request.name, "nodes": str(request.nodes)}
    if request.gpus_per_node:
        options["gpus-per-node"] = str(request.gpus_per_node)
        options["cpus-per-gpu"] = str(math.ceil(request.cpus_per_node / request.gpus_per_node))
    else:
        options["cpus-per-gpu"] = None
        options["mincpus"] = str(request.cpus_per_node)
    if request.ranks_per_node != max(request.gpus_per_node, 1):
        options["ntasks-per-node"] = str(request.ranks_per_node)
    if request.time:
        options["time"] = check_line("`--time`", request.time)
    return options | {key: check_line("`--sbatch`", value) for key, value in request.sbatch}


def _head(request: Request, by: str) -> list[str]:
    file, out = check_line("RUN.yaml", str(request.file)), check_line("`--run-out`", str(request.out))
    this, that_is = this_file(request)
    if request.kind == "study":
        status = ["cxrdist", "study", "status", file, "--out", out, *request.options]
        watch = check_line("`--set`", quote(status))
    elif request.kind == "sweep":
        watch = "squeue --me"
    else:
        watch = quote(["tensorboard", "--logdir", f"{out}/tb"])
    stop = "Stop: scancel JOB. What is finished stays."
    if request.trains and "Ray" not in by:
        stop = "Stop: scancel --signal=TERM JOB. All ranks save a checkpoint; a bare scancel gives them KillWait only."
    shows = '  torchrun ends with 1 and a traceback then: look for "Stopped at step" above it.'
    return [
        f"{request.kind} {file}: {by}, under SLURM.",
        "",
        f"Start: sbatch {this}{that_is}",
        f"Watch: {watch}; tail -f {request.name}-JOB.out, for the number JOB that sbatch prints.",
        stop,
        *([shows] if "torchrun" in by else []),
        "Go on: start it again. Near the end of its time, and when it loses a node, the job does that itself.",
        "At once back into the queue: scancel --batch --signal=USR1 JOB",
    ]
