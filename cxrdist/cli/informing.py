"""`cxrdist shards info`: what is in shard folders, as tables, with warnings behind them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cxrdist.cli.show import print_table
from cxrdist.errors import UsageError

if TYPE_CHECKING:
    from cxrdist.pack.info import Ages, Prevalence, ShardInfo
    from cxrdist.pack.overlaps import Pair
    from cxrdist.pack.shortcuts import Shortcut

MOST_SHORTCUTS = 12
"""Weaker ones are in the JSON."""


def show_info(paths: Sequence[Path], images: int, *, as_json: bool) -> None:
    """Print the numbers of every folder, and of several folders what every two of them share.

    As JSON: of one folder its numbers, of several ``{"folders": {path: numbers}, "pairs": [...]}``.
    """
    from cxrdist.pack.contents import read_contents
    from cxrdist.pack.info import describe
    from cxrdist.pack.overlaps import compare_folders

    twice = sorted({str(path) for path in paths if [other.resolve() for other in paths].count(path.resolve()) > 1})
    if twice:
        raise UsageError(f"A shard folder must be named once, got {', '.join(twice)} more often.")
    opened = [read_contents(path, images) for path in paths]
    told = [describe(contents) for contents in opened]
    pairs = compare_folders(opened)
    if as_json:
        folders = {str(path): numbers.tree() for path, numbers in zip(paths, told, strict=True)}
        typer.echo(
            json.dumps(told[0].tree() if len(told) == 1 else {"folders": folders, "pairs": [p.tree() for p in pairs]})
        )
        return
    for number, numbers in enumerate(told):
        typer.echo("\n" if number else "", nl=False)
        _show_folder(numbers)
    if pairs:
        _show_pairs(pairs)


def _show_folder(found: "ShardInfo") -> None:
    manifest = found.manifest
    how = manifest.preprocessing
    kind = f"{how.format} {how.bits}-bit, shorter side {how.size} px at most, projection {how.projection}"
    patients = f"{found.patients} patients" if manifest.patients_known else "unknown patients, each its own"
    typer.echo(f"{manifest.title}: {manifest.samples} samples of {patients}")
    typer.echo(f"{len(manifest.shards)} shards, {found.bytes / 2**20:.1f} MiB, {kind}")
    rejects = sum(manifest.rejects.values())
    left = _counts(dict(sorted(manifest.rejects.items()))) or "none"
    typer.echo(f"{manifest.rows} images in = {manifest.samples} samples + {rejects} rejects ({left})")
    if found.overlaps is None:
        typer.echo("known overlaps: not looked up, the fact file does not come with cxrdist")
    else:
        typer.echo(f"known overlaps: {'; '.join(f'{name} ({how})' for name, how in found.overlaps.items()) or 'none'}")
    splits = found.splits.items()
    print_table(
        "",
        ["split", "samples", "patients", "studies", "projections", "sex", "age"],
        [
            [name, s.samples, s.patients, s.studies, _counts(s.projection), _counts(s.sex), _ages(s.age)]
            for name, s in splits
        ],
    )
    print_table(
        "source files",
        ["split", "format", "transfer syntax", "bits", "origin"],
        [
            [name, *(_counts(part) or "-" for part in (s.kind, s.transfer_syntax, s.bits, s.origin))]
            for name, s in splits
        ],
    )
    print_table(
        "present / absent / uncertain / not mentioned (present of present and absent)",
        ["finding", *found.splits],
        [[finding, *(_prevalence(s.findings[finding]) for _, s in splits)] for finding in manifest.findings],
    )
    _show_intensities(found)
    _show_shortcuts(found.shortcuts, list(found.splits))
    for warning in found.warnings:
        typer.echo(f"Warning: {warning}")


def _show_intensities(found: "ShardInfo") -> None:
    read = {name: split.intensities for name, split in found.splits.items() if split.intensities}
    if read:
        print_table(
            "grey levels, 0 to 255, of all pixels of images at even distances in the index",
            ["split", "images", "mean", "sd", "1 %", "50 %", "99 %"],
            [
                [
                    name,
                    values.images,
                    *(_number(v, 1) for v in (values.mean, values.sd, values.p1, values.p50, values.p99)),
                ]
                for name, values in read.items()
            ],
        )


def _show_shortcuts(shortcuts: "Sequence[Shortcut]", splits: list[str]) -> None:
    shown = [shortcut for shortcut in shortcuts if shortcut.strength is not None][:MOST_SHORTCUTS]
    if not shown:
        typer.echo("Shortcuts: no finding has enough cases, or no rule tells the images apart.\n")
        return
    print_table(
        f"how well a rule tells a finding (AUROC of the finding's rate in {splits[0]}); "
        f"the strongest {len(shown)} of {len(shortcuts)}",
        ["finding", "rule", *splits, "judged on", "patients with", "without"],
        [
            [
                s.finding,
                s.rule,
                *(_number(s.auroc[split], 2) for split in splits),
                s.judged_on,
                s.positives[s.judged_on or ""],
                s.negatives[s.judged_on or ""],
            ]
            for s in shown
        ],
    )


def _show_pairs(pairs: "Sequence[Pair]") -> None:
    print_table(
        "what two folders share (in train of one, in val or test of the other); how well grey levels tell them apart",
        ["folders", "patients", "equal images", "AUROC"],
        [
            [
                f"{pair.first} + {pair.second}",
                *(
                    "not comparable" if shared is None else f"{shared.count} ({shared.crossing})"
                    for shared in (pair.patients, pair.images)
                ),
                _number(pair.dataset_auroc, 2),
            ]
            for pair in pairs
        ],
    )
    common: dict[str, list[str]] = {}
    for pair in pairs:
        for dataset in pair.common:
            common.setdefault(dataset, []).extend((pair.first, pair.second))
    for dataset, names in common.items():
        typer.echo(f"Note: {', '.join(dict.fromkeys(names))} all overlap with {dataset}, so they may with each other.")
    for note in dict.fromkeys(note for pair in pairs for note in pair.notes):
        typer.echo(f"Note: {note}")
    for warning in dict.fromkeys(warning for pair in pairs for warning in pair.warnings):
        typer.echo(f"Warning: {warning}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _ages(ages: "Ages") -> str:
    return "-" if ages.mean is None else f"{ages.mean:.0f} ({ages.youngest} to {ages.oldest}), {ages.known} known"


def _prevalence(value: "Prevalence") -> str:
    share = "" if value.share is None else f" ({value.share:.1%})"
    return f"{value.present} / {value.absent} / {value.uncertain} / {value.not_mentioned}{share}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
