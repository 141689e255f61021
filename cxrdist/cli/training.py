"""`cxrdist train` and `cxrdist pretrain`: one run, under python, torchrun, deepspeed or srun, or on a Ray cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cxrdist.cli.ending import Stopped
from cxrdist.cli.options import Debug, Json, Settings, ShipCode
from cxrdist.cli.reading import read_file
from cxrdist.errors import UsageError, unknown
from cxrdist.log import only_warnings

if TYPE_CHECKING:
    from cxrdist.study.resources import Resources
    from cxrdist.train.loop import Outcome

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run's configuration.")]
Out = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME, for NAME.yaml.")]
ResumeOption = Annotated[str | None, typer.Option(help="`auto`: go on from the newest checkpoint, if there is one.")]
ReplayOption = Annotated[
    bool,
    typer.Option("--replay", help="Make the step again that stopped the run in --out: which value was not finite?"),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Train on a running Ray cluster: HOST:PORT or `auto`, or http://HOST:8265 to give the command to its head."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="With --address: ranks that train together.")]
GpusPerWorker = Annotated[float | None, typer.Option(min=0, help="With --address: GPUs of each rank. Default: 0.")]
CpusPerWorker = Annotated[float | None, typer.Option(min=0.01, help="With --address: cores of each rank. Default: 1.")]
Placement = Annotated[
    str | None,
    typer.Option(help="With --address: `pack` on as few machines as have room, or `spread`. Default: pack."),
]
Retries = Annotated[
    int | None,
    typer.Option(min=0, help="With --address: how often to go on after a worker or machine was lost. Default: 2."),
]
Wait = Annotated[
    float | None,
    typer.Option(min=0, help="With --address: seconds to wait for machines that are still to come. Default: 60."),
]


def train(  # noqa: PLR0913, PLR0917 - typer makes an option of each
    context: typer.Context,
    run: RunFile,
    settings: Settings = None,
    out: Out = None,
    resume: ResumeOption = None,
    replay: ReplayOption = False,
    address: Address = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    cpus_per_worker: CpusPerWorker = None,
    placement: Placement = None,
    retries: Retries = None,
    wait: Wait = None,
    ship_code: ShipCode = False,
    debug: Debug = False,
    as_json: Json = False,
) -> None:
    """Fine-tune one backbone on one packed dataset.

    The test split is not read. Example: `cxrdist train launch/finetune/debug.yaml --set optim.lr=3e-4 --out runs/a`

    On a Ray cluster: `cxrdist train RUN.yaml --out runs/a --address auto --workers 16 --gpus-per-worker 1`
    """
    from cxrdist.finetune.config import FinetuneConfig

    config = read_file(FinetuneConfig, run, settings, debug=debug)  # before torch: a wrong name is told at once
    folder = out or default_folder(run, debug=debug)
    held = _held(address, replay, workers, gpus_per_worker, cpus_per_worker, placement, retries, wait, ship_code)
    if address is not None:
        _run_on_cluster(context, "train", config, run, folder, address, held, resume, ship_code, as_json)
        return
    from cxrdist.finetune.run import finetune, replay_bad_batch

    if replay:
        _replay(replay_bad_batch, folder, as_json)
    else:
        _run(finetune, config, folder, resume, as_json)


def pretrain(  # noqa: PLR0913, PLR0917 - typer makes an option of each
    context: typer.Context,
    run: RunFile,
    settings: Settings = None,
    out: Out = None,
    resume: ResumeOption = None,
    replay: ReplayOption = False,
    address: Address = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    cpus_per_worker: CpusPerWorker = None,
    placement: Placement = None,
    retries: Retries = None,
    wait: Wait = None,
    ship_code: ShipCode = False,
    debug: Debug = False,
    as_json: Json = False,
) -> None:
    """Pretrain one backbone on packed radiographs: self-supervised, or on the labels of several datasets.

    Example: `torchrun --nproc-per-node 2 -m cxrdist pretrain launch/pretrain/mae.yaml --debug --out runs/mae`

    On a Ray cluster: `cxrdist pretrain RUN.yaml --out runs/mae --address auto --workers 16 --gpus-per-worker 1`
    """
    from cxrdist.pretrain.config import PretrainConfig

    config = read_file(PretrainConfig, run, settings, debug=debug)
    folder = out or default_folder(run, debug=debug)
    held = _held(address, replay, workers, gpus_per_worker, cpus_per_worker, placement, retries, wait, ship_code)
    if address is not None:
        _run_on_cluster(context, "pretrain", config, run, folder, address, held, resume, ship_code, as_json)
        return
    from cxrdist.pretrain.run import pretrain as start
    from cxrdist.pretrain.run import replay_bad_batch

    if replay:
        _replay(replay_bad_batch, folder, as_json)
    else:
        _run(start, config, folder, resume, as_json)


def default_folder(file: Path, *, debug: bool) -> Path:
    """Return the folder for NAME.yaml: runs/NAME, or runs/NAME-debug."""
    return Path("runs") / (f"{file.stem}-debug" if debug else file.stem)


def check_resume(resume: str | None) -> Literal["auto"] | None:
    """Return `resume` if it is a way of resuming.

    Raises:
        UsageError: If it is not.
    """
    if resume is None or resume == "auto":
        return "auto" if resume else None
    raise UsageError(unknown("`--resume`", resume, ["auto"]))


def _replay(look: Any, out: Path, as_json: bool) -> None:
    import json

    found = look(out)
    if as_json:
        typer.echo(json.dumps([one.tree() for one in found]))
    else:
        typer.echo("\n\n".join(one.text() for one in found))


def _run(start: Any, config: Any, out: Path, resume: str | None, as_json: bool) -> None:
    from dataclasses import asdict

    from cxrdist.train.interrupt import Interrupted
    from cxrdist.train.watchdog import RankLostError
    from cxrdist.world import read_world

    world = read_world()
    if not world.is_main:
        only_warnings()
    try:
        outcome: Outcome | None = start(config, out, world=world, resume=check_resume(resume))
    except Interrupted as stop:
        raise Stopped(stop.signum, str(stop) if world.is_main else "") from None
    except RankLostError as lost:
        if lost.told:  # by another rank: once for the job
            raise SystemExit(1) from None
        raise
    if world.is_main:
        _tell(out, asdict(outcome) if outcome else None, as_json)


def _tell(out: Path, outcome: dict[str, Any] | None, as_json: bool) -> None:
    """Say how a run ended; `outcome` is None if it had ended before."""
    import json

    if as_json:
        typer.echo(json.dumps({"out": str(out), "finished_before": outcome is None} | (outcome or {})))
    elif outcome is None:
        typer.echo(f"This run has ended before; its model is in {out / 'model'}.")
    else:
        score = "" if outcome["score"] is None else f", validation AUROC {outcome['score']:.4f}"
        typer.echo(f"Step {outcome['chosen_step']} of {outcome['steps']} chosen{score}. Model: {out / 'model'}")


def _held(
    address: str | None,
    replay: bool,
    workers: int | None,
    gpus: float | None,
    cpus: float | None,
    placement: str | None,
    retries: int | None,
    wait: float | None,
    ship_code: bool,
) -> "Resources":
    """Return what a run on a cluster holds.

    Raises:
        UsageError: If the options do not go together.
    """
    from cxrdist.study.resources import Resources
    from cxrdist.world import read_world

    given = {
        "workers": workers, "gpus-per-worker": gpus, "cpus-per-worker": cpus, "placement": placement,
        "retries": retries, "wait": wait, "ship-code": ship_code or None,
    }  # fmt: skip
    known = {name: value for name, value in given.items() if value is not None}
    if address is None:
        if known:
            raise UsageError(
                f"`--{next(iter(known))}` must come with `--address`, got none. Name a running Ray cluster, or start "
                "several ranks with `torchrun --nproc-per-node N -m cxrdist`."
            )
        return Resources()
    if replay:
        raise UsageError("`--replay` must not come with `--address`, got both. It runs on this machine.")
    world = read_world()
    if world.world_size > 1:
        raise UsageError(
            f"`--address` must be given to one process, got {world.world_size} ranks of {world.launcher}. Ray starts "
            "the ranks (--workers): give the command without a launcher, or leave out --address."
        )
    if workers is None:
        raise UsageError("`--address` must come with `--workers`, got none. Say how many ranks train together.")
    if placement not in (None, "pack", "spread"):
        raise UsageError(unknown("`--placement`", placement, ["pack", "spread"]))
    renamed = {"wait": "patience"}
    tree = {renamed.get(name, name.replace("-", "_")): value for name, value in known.items() if name != "ship-code"}
    return Resources.model_validate(tree)


def _run_on_cluster(
    context: typer.Context,
    method: Literal["train", "pretrain"],
    config: Any,
    run: Path,
    out: Path,
    address: str,
    held: "Resources",
    resume: str | None,
    ship_code: bool,
    as_json: bool,
) -> None:
    from cxrdist.cli.submitting import named_in_run, submitted
    from cxrdist.study.alone import Stopped as RunStopped
    from cxrdist.study.alone import train_on_cluster

    way = check_resume(resume)
    paths, files = named_in_run(config.tree())
    submitted(
        context, address, name=f"{method} {run.stem}", paths={"`--out`": out, **paths}, files=[run, *files],
        keep=out / "submitted" if files else None, ship_code=ship_code,
    )  # fmt: skip
    try:
        result = train_on_cluster(config, out, method=method, address=address, resources=held, resume=way)
    except RunStopped as stop:
        raise Stopped(stop.signum, str(stop)) from None
    shown = ("steps", "chosen_step", "score", "micro_batch_size")
    _tell(out, None if result is None else {name: result[name] for name in shown}, as_json)
