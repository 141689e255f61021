"""`cxrdist launch render`: the launcher of one run, for the cluster at hand."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxrdist.cli.options import Debug, Settings
from cxrdist.cli.training import default_folder
from cxrdist.errors import UsageError, unknown

if TYPE_CHECKING:
    from cxrdist.launch.request import AnyConfig, Kind

launch = typer.Typer(help="Write launchers: SLURM, torchrun, DeepSpeed hostfile, Ray, KubeRay.", no_args_is_help=True)

EXECUTABLE = 0o755
SPECIAL = {
    "setup": "--setup",
    "time": "--time",
    "sbatch": "--sbatch",
    "hosts": "--host",
    "ssh_user": "--ssh-user",
    "ssh_key": "--ssh-key",
    "image": "--image",
    "claim": "--claim",
    "mount": "--mount",
    "queue": "--queue",
    "instance": "--instance",
    "region": "--region",
    "project": "--project",
    "nfs": "--nfs",
}
"""Fields of a request that only some launchers use, and their options."""
OWN = {
    "nodes": "--nodes",
    "gpus-per-node": "--gpus-per-node",
    "ntasks-per-node": "--ranks-per-node",
    "cpus-per-gpu": "--cpus-per-node",
    "mincpus": "--cpus-per-node",
    "time": "--time",
}
"""Options of sbatch that follow from ours."""


@launch.callback()
def _group() -> None:
    """Write launchers: SLURM, torchrun, DeepSpeed hostfile, Ray, KubeRay."""


@launch.command()
def render(  # noqa: PLR0913, PLR0917 - typer makes an option of each
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Which launcher; an unknown name lists all.")],
    run: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="A run, study or sweep.")],
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")],
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs of each; 0 is CPUs only.")],
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Processes that train on each. Default: one per GPU, or one.")
    ] = None,
    cpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="CPU cores of each. Default: what the run has use for.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write. Default: standard output.")] = None,
    run_out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's own --out. Default: runs/NAME, for NAME.yaml.")
    ] = None,
    settings: Settings = None,
    debug: Debug = False,
    setup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LINE", help="All but rayjob, raycluster: shell for each machine before the run. Repeatable."
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(metavar="HH:MM:SS", help="slurm*, rayjob: most time it may take, in any of SLURM's forms."),
    ] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="slurm*: partition=gpu, account=... Repeatable.")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="torchrun, hostfile, ray-local: a machine, the first is the head. Repeatable."),
    ] = None,
    ssh_user: Annotated[str | None, typer.Option(help="ray-*: user on the machines.")] = None,
    ssh_key: Annotated[str | None, typer.Option(metavar="FILE", help="ray-local: private key for it.")] = None,
    image: Annotated[
        str | None, typer.Option(help="rayjob, raycluster, ray-aws, ray-gcp: container image with cxrdist.")
    ] = None,
    claim: Annotated[
        str | None, typer.Option(help="rayjob, raycluster: PersistentVolumeClaim with shards and runs.")
    ] = None,
    mount: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="rayjob, raycluster, ray-aws, ray-gcp: where shared storage is seen."),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="rayjob, raycluster: Kueue queue.")] = None,
    instance: Annotated[str | None, typer.Option(help="ray-aws, ray-gcp: machine type with GPUs.")] = None,
    region: Annotated[str | None, typer.Option(help="ray-aws: region; ray-gcp: zone.")] = None,
    project: Annotated[str | None, typer.Option(help="ray-gcp: project.")] = None,
    nfs: Annotated[
        str | None, typer.Option(metavar="SERVER:/PATH", help="ray-aws, ray-gcp: shared storage to mount.")
    ] = None,
) -> None:
    """Write the launcher of one run, so that no template is edited by hand; the run's file is checked first.

    Example: `cxrdist launch render slurm launch/finetune/vit-b.yaml --nodes 2 --gpus-per-node 8 --out job.sbatch`

    TARGET: slurm, slurm-torchrun, slurm-ray, torchrun, hostfile, rayjob, raycluster, ray-local, ray-aws, ray-gcp.
    launch/README.md says which to choose.
    """
    from cxrdist.launch.request import Request, check_fits, default_cpus, holds_gpus, is_grown, read_any, seconds_of
    from cxrdist.launch.targets import TARGETS

    if target not in TARGETS:
        raise UsageError(unknown("TARGET", target, TARGETS))
    chosen = TARGETS[target]
    kind, config = read_any(run, settings or (), debug=debug)
    if kind not in chosen.kinds:
        raise UsageError(
            f"{target!r} must be given a {' or '.join(chosen.kinds)} file, got a {kind} [{run.name}]. "
            f"For it take one of {', '.join(name for name, one in TARGETS.items() if kind in one.kinds)}."
        )
    ranks = ranks_per_node or max(gpus_per_node, 1)
    special: dict[str, Any] = {
        "setup": tuple(setup or ()), "time": time, "sbatch": _pairs(sbatch or ()), "hosts": tuple(host or ()),
        "ssh_user": ssh_user, "ssh_key": ssh_key, "image": image, "claim": claim, "mount": mount, "queue": queue,
        "instance": instance, "region": region, "project": project, "nfs": nfs,
    }  # fmt: skip
    unused = [SPECIAL[name] for name, value in special.items() if value and name not in chosen.options]
    if unused:
        raise UsageError(f"{target!r} must be given options that it uses, got {', '.join(unused)}. Leave them out.")
    if time:
        seconds_of(time)
    if out is not None and out.is_dir():
        raise UsageError(f"`--out` must be a file to write, got the folder {str(out)!r}. Name a file in it.")
    if out is not None and _is_run(out):
        raise UsageError(
            f"`--out` must not be the file of a run, got {str(out)!r}. Name another, such as launcher.yaml."
        )
    request = Request(
        kind=kind,
        file=run,
        text=run.read_text(encoding="utf-8"),
        out=run_out or default_folder(run, debug=debug),
        here=Path.cwd(),
        bin=Path(sys.executable).parent,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        ranks_per_node=ranks,
        cpus_per_node=cpus_per_node or ranks * default_cpus(config),
        cpus_asked=cpus_per_node is not None,
        relative=_relative(kind, config),
        grows=is_grown(config),
        target_file=out,
        options=(*(["--debug"] if debug else []), *(word for one in settings or () for word in ("--set", one))),
    )
    check_fits(config, request)
    if gpus_per_node and not holds_gpus(config):
        typer.echo(
            "Note: no trial of it asks for a GPU, so those of these machines stay idle. "
            f"Say --set resources.gpus_per_worker=1, or --gpus-per-node 0 [{run.name}].",
            err=True,
        )
    text = chosen.render(replace(request, **special))
    if out is None:
        typer.echo(text, nl=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    if text.startswith("#!"):
        out.chmod(EXECUTABLE)
    typer.echo(f"Written: {out}. Its head says how to start, watch and stop it.", err=True)


def _is_run(file: Path) -> bool:
    """Return whether `file` is there and describes a run: it must not be lost for a launcher of the same ending."""
    from cxrdist.config import read_tree
    from cxrdist.launch.request import kind_of

    try:
        return file.is_file() and kind_of(read_tree(file)) is not None
    except UsageError:
        return False


def _relative(kind: "Kind", config: "AnyConfig") -> tuple[tuple[str, str | tuple[str, ...]], ...]:
    """Return the settings of a run that are relative paths; those of a command for another machine must not be."""
    from cxrdist.cli.submitting import named_in, named_in_run, relative_of
    from cxrdist.train.run_folder import flatten

    tree = config.tree()
    if kind == "study":
        paths, _ = named_in(tree)
    elif kind == "sweep":
        inner, _ = named_in_run(tree["run"])
        paths = {f"`run.{name.strip('`')}`": value for name, value in inner.items()}
    else:
        paths, _ = named_in_run(tree)
    flat = flatten(tree)
    found: dict[str, str | tuple[str, ...]] = {}
    for marked, path in relative_of(paths):
        name = marked.strip("`")
        value = flat.get(name)
        found[name] = tuple(str(one) for one in value) if isinstance(value, list) else path
    return tuple(found.items())


def _pairs(given: list[str] | tuple[()]) -> tuple[tuple[str, str], ...]:
    """Return KEY=VALUE options as pairs; one without a value is a switch.

    Raises:
        UsageError: If a key is none.
    """
    pairs = []
    for one in given:
        key, _, value = one.removeprefix("--").partition("=")
        if not key or not key.replace("-", "").isalpha() or not key.islower() or any(c.isspace() for c in value):
            raise UsageError(
                f"`--sbatch` must be KEY=VALUE as sbatch has it, got {one!r}. Example: --sbatch partition=gpu"
            )
        if key in OWN:
            raise UsageError(f"`--sbatch` must be what the launcher does not set itself, got {key}. Give {OWN[key]}.")
        pairs.append((key, value))
    return tuple(pairs)
