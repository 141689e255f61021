"""Which columns of a table a fact file speaks of."""

from collections.abc import Iterable, Iterator

from cxrdist.datasets.facts import FactFile, Inversion, TokenLabels
from cxrdist.datasets.layouts import Cell, TableLayout
from cxrdist.findings import NO_FINDING


def columns_read(facts: FactFile) -> dict[str, set[str]]:
    """Return every column that anything reads, and the words in it that the facts know; all in lower case.

    Other columns never come into memory; a known word says something even where it is one for blank (``None``).
    """
    names: list[str] = [*facts.keep, *facts.drop, *facts.replace]
    layout = facts.layout
    if isinstance(layout, TableLayout):
        names += [*columns_of(layout.image), *([layout.reader] if layout.reader else [])]
        names += [column for table in layout.tables if table.named_by for column in table.named_by.on]
    names += [column for join in layout.joins for column in join.on]
    columns = facts.columns
    names += columns_of([*columns.patient, *columns.study, *columns.projection])
    names += columns_of([columns.sex] if columns.sex else [])
    if columns.age:
        names += [name for name in (columns.age.column, columns.age.at, columns.age.since) if name]
    if isinstance(facts.labels, TokenLabels):
        names += facts.labels.columns
    else:
        names += [name for source in facts.findings.values() for name in source.names]
    names += [facts.splits.column] if facts.splits.column else []
    names += [facts.origin.column] if facts.origin else []
    names += [facts.pixels.invert.column] if isinstance(facts.pixels.invert, Inversion) else []
    read: dict[str, set[str]] = {name.strip().lower(): set() for name in names}
    for column, words in _words_known(facts):
        read[column.strip().lower()].update(word.strip().lower() for word in words)
    return read


def required_columns(facts: FactFile) -> dict[tuple[str, ...], str]:
    """Return the columns that some table must have, each with the place in the facts that names it.

    Of several in one key any will do: other names of one cell, or columns of different releases.
    """
    found: dict[tuple[str, ...], str] = {}

    def add(where: str, *names: str | None) -> None:
        key = tuple(dict.fromkeys(name.strip().lower() for name in names if name))
        if key:
            found.setdefault(key, where)

    columns = facts.columns
    for part in columns.patient:
        add("columns.patient", *columns_of([part]))
    for part in columns.study:
        add("columns.study", *columns_of([part]))
    add("columns.projection", *columns_of(columns.projection))
    add("columns.sex", *columns_of([columns.sex] if columns.sex else []))
    if columns.age:
        for name in (columns.age.column, columns.age.at, columns.age.since):
            add("columns.age", name)
    if isinstance(facts.labels, TokenLabels):
        for name in facts.labels.columns:
            add("labels.columns", name)
    else:
        for finding, source in facts.findings.items():
            for names in [source.names] if source.either else [[name] for name in source.names]:
                add(f"findings.{finding}", *names)
    for where, listed in (("keep", facts.keep), ("drop", facts.drop), ("replace", facts.replace)):
        for name in listed:
            add(where, name)
    add("layout.reader", facts.layout.reader if isinstance(facts.layout, TableLayout) else None)
    add("splits.column", facts.splits.column if facts.splits.official and not facts.splits.lists else None)
    add("origin", facts.origin.column if facts.origin else None)
    add("pixels.invert", facts.pixels.invert.column if isinstance(facts.pixels.invert, Inversion) else None)
    return found


def columns_of(cells: Iterable[Cell]) -> list[str]:
    """Return every column that `cells` are read from."""
    return [column for cell in cells for column in (cell.column, *cell.otherwise)]


def _words_known(facts: FactFile) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield columns with the words that the facts know in them."""
    for listed in (facts.keep, facts.drop, facts.replace):
        yield from listed.items()
    columns, labels = facts.columns, facts.labels
    yield from ((name, facts.projections) for name in columns_of(columns.projection))
    yield from ((name, facts.sexes) for name in columns_of([columns.sex] if columns.sex else []))
    if isinstance(labels, TokenLabels):
        said = [*labels.exclude, *labels.unlabelled, *labels.open, *(labels.others or [])]
        said += [name for source in facts.findings.values() for name in source.names]
        yield from ((name, said) for name in labels.columns)
    else:
        for source in facts.findings.values():
            yield from ((name, source.values or labels.values) for name in source.names)
    if facts.splits.column:
        yield facts.splits.column, facts.splits.values
    if facts.origin:
        yield facts.origin.column, facts.origin.words
    if isinstance(facts.pixels.invert, Inversion):
        yield facts.pixels.invert.column, facts.pixels.invert.values


def derived_findings(facts: FactFile) -> list[str]:
    """Return the findings that say nothing of their own: made of others, or of the same columns or words as finer ones.

    A mean over all findings would count those columns twice.  `no_finding` is never one.
    """
    sources = facts.findings

    def finer(one: str, other: str) -> bool:
        mine, theirs = sources[one], sources[other]
        if mine.values != theirs.values:  # other grades of one column are other findings
            return False
        if len(mine.names) != len(theirs.names):
            return len(mine.names) < len(theirs.names)
        return mine.relation == "=" and theirs.relation != "="

    found = []
    for name, source in sources.items():
        others = {word for other in sources if finer(other, name) for word in sources[other].names}
        if name != NO_FINDING and (not source.names or others.issuperset(source.names)):
            found.append(name)
    return found
