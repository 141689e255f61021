"""`cxrdist train` and `cxrdist pretrain`: one run, under python, torchrun, deepspeed or srun."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cxrdist.cli.ending import Stopped
from cxrdist.cli.options import Debug, Json, Settings
from cxrdist.errors import UsageError, unknown
from cxrdist.log import only_warnings

if TYPE_CHECKING:
    from cxrdist.train.loop import Outcome

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run's configuration.")]
Out = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME, for NAME.yaml.")]
ResumeOption = Annotated[str | None, typer.Option(help="`auto`: go on from the newest checkpoint, if there is one.")]
ReplayOption = Annotated[
    bool,
    typer.Option("--replay", help="Make the step again that stopped the run in --out: which value was not finite?"),
]


def train(
    run: RunFile,
    settings: Settings = None,
    out: Out = None,
    resume: ResumeOption = None,
    replay: ReplayOption = False,
    debug: Debug = False,
    as_json: Json = False,
) -> None:
    """Fine-tune one backbone on one packed dataset.

    The test split is not read. Example: `cxrdist train launch/finetune/debug.yaml --set optim.lr=3e-4 --out runs/a`
    """
    from cxrdist.finetune.config import FinetuneConfig

    config = FinetuneConfig.read(
        run, settings or (), debug=debug
    )  # before torch is imported: a wrong name is told at once
    from cxrdist.finetune.run import finetune, replay_bad_batch

    folder = out or default_folder(run, debug=debug)
    if replay:
        _replay(replay_bad_batch, folder, as_json)
    else:
        _run(finetune, config, folder, resume, as_json)


def pretrain(
    run: RunFile,
    settings: Settings = None,
    out: Out = None,
    resume: ResumeOption = None,
    replay: ReplayOption = False,
    debug: Debug = False,
    as_json: Json = False,
) -> None:
    """Pretrain one backbone on packed radiographs: self-supervised, or on the labels of several datasets.

    Example: `torchrun --nproc-per-node 2 -m cxrdist pretrain launch/pretrain/mae.yaml --debug --out runs/mae`
    """
    from cxrdist.pretrain.config import PretrainConfig

    config = PretrainConfig.read(run, settings or (), debug=debug)
    from cxrdist.pretrain.run import pretrain as start
    from cxrdist.pretrain.run import replay_bad_batch

    folder = out or default_folder(run, debug=debug)
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
    import json
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
    if not world.is_main:
        return
    if as_json:
        typer.echo(
            json.dumps({"out": str(out), "finished_before": outcome is None} | (asdict(outcome) if outcome else {}))
        )
    elif outcome is None:
        typer.echo(f"This run has ended before; its model is in {out / 'model'}.")
    else:
        score = "" if outcome.score is None else f", validation AUROC {outcome.score:.4f}"
        typer.echo(f"Step {outcome.chosen_step} of {outcome.steps} chosen{score}. Model: {out / 'model'}")
