"""`cxrdist phantom`, `datasets`, `pack` and `shards`: from raw radiographs to shards that are known to be whole."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxrdist.cli.options import Json, ShipCode
from cxrdist.phantom.layouts import HOMES, TABLES

if TYPE_CHECKING:
    from cxrdist.datasets import FactFile
    from cxrdist.datasets.shard_format import Manifest

Workers = Annotated[int, typer.Option(min=1, help="Processes that work together.")]
Roots = Annotated[
    list[Path], typer.Option(metavar="RAW", help="Folder of the dataset as downloaded; again for further parts of it.")
]
ShardFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A shard folder.")]

shards = typer.Typer(help="Look at shard folders, check them, and mend them.", no_args_is_help=True)


def phantom(
    layout: Annotated[str, typer.Argument(metavar="LAYOUT", help=f"One of {', '.join(HOMES)}.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    patients: Annotated[int, typer.Option(help="How many patients to draw.")],
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    difficulty: Annotated[float, typer.Option(help="0: findings are obvious; 1: barely visible.")] = 0.5,
    size: Annotated[int | None, typer.Option(help="Shorter side, pixels. Default: the layout's.")] = None,
    workers: Workers = 1,
    traps: Annotated[
        bool, typer.Option(help="Plant what real copies contain: junk, truncated and missing files.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Draw chest radiographs of people who do not exist, in a real dataset's on-disk layout.

    Example: `cxrdist phantom chexpert raw/chexpert --patients 200`
    """
    import json

    from cxrdist.phantom import write_phantoms

    summary = write_phantoms(
        layout, out, patients=patients, seed=seed, difficulty=difficulty, size=size, workers=workers, traps=traps
    )
    if as_json:
        facts = {"patients": summary.patients, "images": summary.images, "findings": summary.findings}
        typer.echo(json.dumps({"root": str(summary.root)} | facts))
    else:
        typer.echo(f"{summary.images} images of {summary.patients} patients in {summary.root}")
        roots = f"--root {summary.root}"
        if layout in TABLES:
            other = out.parent / TABLES[layout]
            roots += f" --root {other}"
            typer.echo(f"Labels: cxrdist phantom {TABLES[layout]} {other} --patients {patients} --seed {seed}")
        typer.echo(f"Next: cxrdist pack {layout} {roots} --out {out.parent / (out.name + '-shards')}")


def datasets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one's fact file.")] = None,
    as_json: Json = False,
) -> None:
    """List the datasets that can be packed: what marks them, how they are labelled, where to get them.

    With a name, print that dataset's fact file, to read or to start an own one from. Example: `cxrdist datasets`
    """
    import json

    from cxrdist.config import shipped
    from cxrdist.datasets import describe_markers, list_facts, read_facts

    if name is not None:
        facts = read_facts(name)
        path = Path(name) if name != facts.name else shipped("shards") / f"{name}.yaml"
        typer.echo(facts.model_dump_json(indent=2) if as_json else path.read_text(encoding="utf-8"), nl=as_json)
        return
    if as_json:
        entries = [
            {
                "name": facts.name,
                "title": facts.title,
                "marked_by": describe_markers(facts),
                "labels": facts.coding,
                "overlaps": facts.overlaps,
                "variants": {variant: changes["about"] for variant, changes in facts.variants.items()},
                "findings": list(facts.findings),
                "verified": facts.verified,
                "licence": facts.licence,
                "home": facts.home,
            }
            for facts in list_facts()
        ]
        typer.echo(json.dumps(entries, indent=2))
        return
    for facts in list_facts():
        typer.echo(f"\n{facts.name}  {facts.title}")
        typer.echo(f"  marked by: {describe_markers(facts)}")
        typer.echo(f"  labels:    {facts.coding}")
        typer.echo(f"  licence:   {facts.licence}")
        typer.echo(f"  home:      {facts.home}")
        if facts.overlaps:
            typer.echo(f"  overlaps:  {'; '.join(f'{other} ({how})' for other, how in facts.overlaps.items())}")
        for variant, changes in facts.variants.items():
            typer.echo(f"  variant:   {variant}: {changes['about']}")
        if not facts.verified:
            typer.echo("  The layout is as far as known, and not yet tried on a real copy.")


def pack(  # noqa: PLR0913, PLR0917 - typer makes an option of each
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A dataset's name, a fact file, or `auto`.")],
    root: Roots,
    out: Annotated[Path, typer.Option(metavar="SHARDS", help="Shard folder to write.")],
    variant: Annotated[
        str | None, typer.Option(help="Another reading of the dataset; `datasets NAME` lists them.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=V", help="Change a fact, e.g. splits.seed=1.")
    ] = None,
    size: Annotated[int, typer.Option(help="Shorter side, pixels; nothing is enlarged.")] = 512,
    image_format: Annotated[str, typer.Option("--format", help="jpeg or png.")] = "jpeg",
    bits: Annotated[int, typer.Option(help="8, or 16 with png.")] = 8,
    quality: Annotated[int, typer.Option(help="JPEG quality.")] = 95,
    workers: Workers = 1,
    address: Annotated[
        str | None,
        typer.Option(
            help="A running Ray cluster that works instead, as of `study run`; its machines share the folders."
        ),
    ] = None,
    ship_code: ShipCode = False,
    id_key: Annotated[Path | None, typer.Option(help="Key of the pseudonyms; made if it is not there.")] = None,
    id_map: Annotated[Path | None, typer.Option(help="Private table of source files and pseudonyms.")] = None,
    projection: Annotated[str, typer.Option(help="frontal or all.")] = "frontal",
    equalize: Annotated[str, typer.Option(help="none, global, clahe or tayebi2024 (a study's own).")] = "none",
    burned_in_text: Annotated[
        str | None, typer.Option(help="Images with text in them: reject, flag or mask. Default: the dataset's.")
    ] = None,
    max_reject: Annotated[float, typer.Option(help="Stop when a larger share cannot be read.")] = 0.05,
    as_json: Json = False,
) -> None:
    """Pack raw radiographs into WebDataset shards, once: correct pixels, pseudonyms, every exclusion accounted for.

    Interrupted, the same command goes on. Where tables and images lie apart, name both folders.
    Example: `cxrdist pack nih14 --root raw/nih --out shards/nih14 --workers 8`
    """
    from contextlib import nullcontext

    from cxrdist.cli.submitting import submitted
    from cxrdist.config import parse_settings
    from cxrdist.datasets import detect, read_facts
    from cxrdist.dispatch.cluster import cluster, ray_map
    from cxrdist.log import get_logger
    from cxrdist.pack import PackOptions
    from cxrdist.pack.dataset import pack_dataset

    submitted(
        context,
        address,
        name=f"pack {Path(name).stem}",
        paths={"`--root`": root, "`--out`": out, "`--id-key`": id_key, "`--id-map`": id_map},
        files=[Path(name)] if Path(name).is_file() else [],
        ship_code=ship_code,
    )
    options = PackOptions.build(
        {
            "size": size,
            "format": image_format,
            "bits": bits,
            "quality": quality,
            "workers": workers,
            "id_key": id_key,
            "id_map": id_map,
            "projection": projection,
            "equalize": equalize,
            "burned_in_text": burned_in_text,
            "max_reject": max_reject,
        },
        where="the options",
    )
    if name == "auto":
        name = detect(root).name
        get_logger(__name__).info("`--root` holds %s. To read it as another dataset, name that one.", name)
    facts = read_facts(name, variant=variant, changes=parse_settings(settings or []))
    if address:  # other machines have other working folders
        root, out = [each.resolve() for each in root], out.resolve()
    with cluster(address) if address else nullcontext():
        spread = ray_map([*root, out], ordered=False) if address else None
        manifest = pack_dataset(facts, root, out, options, spread=spread)
    if as_json:
        typer.echo(manifest.model_dump_json())
    else:
        _show_pack(facts, manifest, out)


def _show_pack(facts: "FactFile", manifest: "Manifest", out: Path) -> None:
    splits = ", ".join(f"{split} {count}" for split, count in manifest.splits.items())
    left = ", ".join(f"{reason} {count}" for reason, count in sorted(manifest.rejects.items())) or "none"
    rejects = sum(manifest.rejects.values())
    typer.echo(f"{facts.title}: {manifest.rows} images in = {manifest.samples} samples + {rejects} rejects")
    typer.echo(f"  samples: {splits}")
    typer.echo(f"  rejects: {left}")
    typer.echo(f"  {len(manifest.shards)} shards in {out}")


@shards.command()
def info(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Shard folders.")],
    images: Annotated[int, typer.Option(min=0, help="Images read per split for their grey levels; 0: none.")] = 200,
    as_json: Json = False,
) -> None:
    """Show counts, prevalence, grey levels, and what a model could score by without looking at the lungs.

    Of several folders also what they share. Example: `cxrdist shards info shards/nih14 shards/rsna_pneumonia`
    """
    from cxrdist.cli.informing import show_info

    show_info(folders, images, as_json=as_json)


@shards.command()
def verify(folder: ShardFolder, workers: Workers = 1, as_json: Json = False) -> None:
    """Check every hash, every member, every image and every field of a shard folder.

    Exit 1 if anything is wrong. Example: `cxrdist shards verify shards/nih14`
    """
    import json

    from cxrdist.datasets.shard_format import read_manifest
    from cxrdist.pack.verify import verify_shards
    from cxrdist.pack.ways_out import repair_command

    problems = verify_shards(folder, workers)
    if as_json:
        typer.echo(json.dumps([str(problem) for problem in problems]))
    for problem in [] if as_json else problems:
        typer.echo(f"{problem}")
    if problems:
        typer.echo(
            f"{len(problems)} problems in {folder}. Mend it, RAW being the same folders in the same order as packed: "
            f"{repair_command(folder, read_manifest(folder))}",
            err=True,
        )
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"{folder} is whole.")


@shards.command()
def repair(
    folder: ShardFolder,
    root: Roots,
    name: Annotated[str | None, typer.Option(help="The dataset's name or fact file. Default: as packed.")] = None,
    variant: Annotated[str | None, typer.Option(help="Its variant. Default: as packed.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=V", help="A fact changed for the pack. Default: as kept beside the id key."),
    ] = None,
    id_key: Annotated[Path | None, typer.Option(help="The key it was packed with.")] = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Build the broken and missing shards of a folder again, byte for byte as they were.

    Example: `cxrdist shards repair shards/nih14 --root raw/nih`
    """
    from cxrdist.config import parse_settings
    from cxrdist.datasets.tree import check_root
    from cxrdist.pack.dataset import packed_facts, repair_dataset

    for each in root:
        check_root(each)
    changes = parse_settings(settings or [])
    facts = packed_facts(folder, name=name, variant=variant, changes=changes, id_key=id_key)
    manifest = repair_dataset(facts, root, folder, id_key=id_key, workers=workers)
    if as_json:
        typer.echo(manifest.model_dump_json())
    else:
        typer.echo(f"{folder} is whole again: {manifest.samples} samples in {len(manifest.shards)} shards.")
