"""The page of a sweep: one self-contained HTML file in the style of a study's report; every text is escaped."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

import cxrdist.report
from cxrdist.report.figures import to_bytes
from cxrdist.report.tables import number, write_csv
from cxrdist.study.sweep.config import PbtScheduler
from cxrdist.study.sweep.figures import draw
from cxrdist.study.sweep.importance import FEWEST, importances, shown
from cxrdist.study.sweep.results import Findings, Row, budget, check, trial_rows

SHOWN = 30
"""Trials that the page lists of each strategy; `trials.csv` has all."""
SCHEDULERS = {
    "none": "every trial ran to its end",
    "asha": "asynchronous successive halving (Li et al. 2020): the worse trials ended at rungs",
    "median": "median stopping (Golovin et al. 2017): trials below the others' median ended",
    "pbt": "population based training (Jaderberg et al. 2017): the worst went on from checkpoints of the best",
}
ALGORITHMS = {
    "random": "drawn at random; draw i depends on the seed and i alone",
    "optuna": "asked for one after the other, of Optuna's TPE (Bergstra et al. 2011)",
}


def write_page(found: Findings, out: Path) -> Path:
    """Write ``report/``: `index.html`, `trials.csv`, `budget.csv`, `checks.csv` and figures; return the page."""
    folder = out / "report"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    guards, used, rows = check(found, out), budget(found), trial_rows(found)
    write_csv(rows, folder / "trials.csv")
    write_csv(used, folder / "budget.csv")
    write_csv([{"name": g.name, "passed": g.passed, "detail": g.detail} for g in guards], folder / "checks.csv")
    weighed = {name: importances(found.sweep, found.of(name)) for name in found.strategies}
    for stale in (folder / "figures").iterdir():
        stale.unlink()
    svgs = {}
    for name, figure in draw(found, {strategy: one for strategy, (_, one) in weighed.items()}).items():
        svgs[name] = to_bytes(figure, "svg")
        (folder / "figures" / f"{name}.svg").write_bytes(svgs[name])
        (folder / "figures" / f"{name}.png").write_bytes(to_bytes(figure, "png"))
    steps = {strategy: step for strategy, (step, one) in weighed.items() if one}
    page = _render(found, guards=guards, used=used, svgs=svgs, compared_at=steps)
    partial = folder / ".index.html.partial"
    partial.write_text(page, encoding="utf-8")
    return partial.replace(folder / "index.html")


def _render(
    found: Findings, *, guards: Any, used: list[dict[str, Any]], svgs: Mapping[str, bytes], compared_at: dict[str, int]
) -> str:
    sweep = found.sweep
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
    )  # fmt: skip
    style = (Path(cxrdist.report.__file__).parent / "page.css").read_text(encoding="utf-8")
    many = len(found.strategies) > 1
    return templates.get_template("page.html.j2").render(
        title=sweep.title,
        style=style,
        facts=[
            (f"{len(found.rows):,}", "trials"),
            (f"{len(sweep.search)}", "searched values"),
            *([(f"{len(found.strategies)}", "strategies")] if many else []),
            (f"{sum(row.steps for row in found.rows):,}", "steps trained"),
        ],
        best=[_best(found, name) for name in found.strategies],
        names=list(sweep.search),
        spaces=[(name, space.kind, ", ".join(map(shown, space.values))) for name, space in sweep.search.items()],
        many=many,
        guards=guards,
        failed=sum(not guard.passed for guard in guards),
        budget=used,
        trials=[(name, _listed(found, name)) for name in found.strategies],
        shown=SHOWN,
        figures={name: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for name, svg in svgs.items()},
        compared_at=compared_at,
        fewest=FEWEST,
        scheduler=SCHEDULERS[sweep.scheduler.name],
        settings=", ".join(f"{k} {shown(v)}" for k, v in sweep.scheduler.model_dump().items() if k != "name"),
        algorithm=ALGORITHMS[sweep.algorithm.name],
        population=isinstance(sweep.scheduler, PbtScheduler),
        seed=sweep.seed,
    )


def _best(found: Findings, strategy: str) -> dict[str, Any]:
    row = found.best(strategy)
    if row is None:
        return {"strategy": strategy, "trial": "", "auroc": "", "values": []}
    return {"strategy": strategy, "trial": row.name, "auroc": number(row.best or 0.0), "values": _values(row)}


def _listed(found: Findings, strategy: str) -> list[dict[str, Any]]:
    rows = sorted(found.of(strategy), key=lambda row: (-(row.best or 0.0), row.name))[:SHOWN]
    best = found.best(strategy)
    return [
        {
            "name": row.name,
            "state": row.state,
            "auroc": "–" if row.best is None else number(row.best),
            "steps": f"{row.steps:,}",
            "values": _values(row),
            "best": best is not None and row.name == best.name,
        }
        for row in rows
    ]


def _values(row: Row) -> list[str]:
    return [shown(value) for value in row.trial.values.values()]
