"""Write a report folder: index.html, the tables as csv, Markdown and LaTeX, the figures as SVG and PNG."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cxrdist.report import compared, others, tables
from cxrdist.report.analysis import StudyResult, analyse
from cxrdist.report.cells import CellFiles, Guard, ReportOptions, read_cell
from cxrdist.report.external import Across, ExternalFiles, analyse_external, check_external_results
from cxrdist.report.external_tables import differences_table, external_finding_rows, external_rows, matrix_table
from cxrdist.report.figures import draw, to_bytes
from cxrdist.report.guards import check
from cxrdist.report.heatmap import draw_external
from cxrdist.report.learning import learning_rows, learning_table
from cxrdist.report.page import render
from cxrdist.report.replication import replication_rows, replication_table
from cxrdist.stats.resample import MapFunction
from cxrdist.stats.tayebi2024 import CONVENTION


def write_report(
    cells: Sequence[CellFiles],
    out: Path,
    *,
    title: str,
    options: ReportOptions,
    guards: Sequence[Guard] = (),
    notes: Sequence[str] = (),
    external: Sequence[ExternalFiles] = (),
    map: MapFunction = map,
) -> Path:
    """Write the report of `cells` into the folder `out` and return the path of its page.

    The same run folders and options give the same bytes.  A cell without predictions is named as missing.

    Args:
        cells: All cells that the study declares, finished or not.
        out: Made if it is not there; files of an earlier report are replaced.
        title: Heading of the page.
        options: Reference strategy and the settings of the statistics.
        guards: Checks the caller made, shown before those the report makes itself.
        notes: Sentences for the reader (confounds, known overlaps).
        external: Tests of these cells on other datasets, made or not.
        map: Where to work out the bootstrap.

    Raises:
        UsageError: If there are no cells, or none of the reference strategy.
    """
    study = analyse([read_cell(one) for one in cells], options, map)
    across = analyse_external(external, study, map)
    all_guards = [*guards, *check(study), *([check_external_results(across)] if across else [])]
    out.mkdir(parents=True, exist_ok=True)
    figures = _write_figures(study, across, out / "figures")
    files = _write_tables(study, all_guards, across, out)
    page = render(study, title=title, guards=all_guards, notes=notes, figures=figures, files=files, across=across)
    path = out / "index.html"
    # Written last and at once: a page that is there is complete.
    partial = out / ".index.html.partial"
    partial.write_text(page, encoding="utf-8")
    return partial.replace(path)


def _write_figures(study: StudyResult, across: Across | None, folder: Path) -> dict[str, bytes]:
    """Write every figure as SVG and PNG, and return the SVG files by the name the page knows them."""
    folder.mkdir(exist_ok=True)
    for kind in ("forest", "roc", "reliability", "learning", "external", "training"):
        for stale in (*folder.glob(f"{kind}*.svg"), *folder.glob(f"{kind}*.png")):
            stale.unlink()
    slugs = file_names([one.name for one in study.datasets])
    svgs = {}
    for name, figure in (draw(study) | (draw_external(across, study) if across else {})).items():
        kind, _, index = name.partition("_")
        file = f"{kind}-{slugs[int(index)]}" if index else kind
        svgs[name] = to_bytes(figure, "svg")
        (folder / f"{file}.svg").write_bytes(svgs[name])
        (folder / f"{file}.png").write_bytes(to_bytes(figure, "png"))
    return svgs


def file_names(names: Sequence[str]) -> list[str]:
    """Return a distinct, portable file name for each of `names`."""
    slugs: list[str] = []
    for i, name in enumerate(names):
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "dataset"
        slugs.append(slug if slug not in slugs else f"{slug}-{i}")
    return slugs


def _write_tables(study: StudyResult, guards: Sequence[Guard], across: Across | None, out: Path) -> list[str]:
    """Write every table in every format and return the names of the files."""
    tables.write_csv(tables.headline_rows(study), out / "headline.csv")
    tables.write_csv(tables.finding_rows(study), out / "findings.csv")
    tables.write_csv([asdict(guard) for guard in guards], out / "guards.csv")
    tables.write_csv(compared.study_rows(study), out / "statistics.csv")
    names = ["headline.csv", "findings.csv", "guards.csv", "statistics.csv"]
    more = {"learning": learning_rows(study), CONVENTION: replication_rows(study)}
    more["external"] = external_rows(across, study) if across else []
    more["external-findings"] = external_finding_rows(across, study) if across else []
    for name, rows in more.items():
        for stale in out.glob(f"{name}.*"):
            stale.unlink()
        if rows:
            tables.write_csv(rows, out / f"{name}.csv")
            names.append(f"{name}.csv")
    shown = [tables.headline_table(study), tables.finding_table(study), tables.guard_table(guards)]
    shown += [learning_table(study)] * bool(more["learning"])
    shown += [others.metrics_table(study), *others.subgroup_tables(study)]
    shown += [replication_table(study)] * bool(more[CONVENTION])
    shown += [matrix_table(across, study), differences_table(across, study)] if across else []
    for stale in (path for name in ("by-*", "external-differences") for path in out.glob(f"{name}.[mt]*")):
        stale.unlink()
    # A subgroup column may be named as no file can be.
    for table, file in zip(shown, file_names([table.name for table in shown]), strict=True):
        (out / f"{file}.md").write_text(tables.markdown(table), encoding="utf-8")
        (out / f"{file}.tex").write_text(tables.latex(table), encoding="utf-8")
        names += [f"{file}.md", f"{file}.tex"]
    return names
