"""The table in a prediction file that anybody wrote, csv or parquet, brought to plain columns: text ids, numbers, text.

Values are judged in `predictions.py`; here a file that is no such table, or whose columns cannot mean what their names
say, gets its sentence.
"""

import csv
import io
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxrdist.errors import UsageError

TARGET, SCORE = "y_", "p_"
IDS = ("image_id", "patient_id")
MISSING = ("", "nan", "NaN", "NAN", "na", "NA", "n/a", "N/A", "#N/A", "null", "NULL", "None", "none", "<NA>")
"""How people write that a value is absent; in an id only the empty text is, for `NA` may be somebody's id."""
OTHER_FORMATS = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip or a spreadsheet",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "parquet",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
"""How files begin that carry a wrong ending."""
LONGEST = 60
"""Characters of an id or a name that a sentence shows."""


def read_table(path: Path) -> pd.DataFrame:
    """Return the (N, columns) table of a file that ends in ``.csv`` or ``.parquet``.

    Column names are unique.  Ids are `str` or None, exactly as written: whole numbers as their digits, so that they
    match the same digits in a csv.  Categories are decoded.  Columns without a name, of dates or of lists are left out,
    unless they should be an id, a label or a probability, which is refused.

    Raises:
        UsageError: If the file is missing, no such table, or a column has a type that cannot be meant.
    """
    try:
        if path.is_dir():
            raise UsageError(f"A prediction file must be a file, got the folder {path.name!r}. Name a file in it.")
        if not path.is_file():
            raise UsageError(f"A prediction file must exist, got {path.name!r}. Check the path.")
        if path.suffix.lower() not in (".csv", ".parquet"):
            raise UsageError(f"A prediction file must end in .csv or .parquet, got {path.name!r}.")
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"A prediction file must be readable, got {error.strerror!r}{_where(path)}.") from None
    if not content.strip():
        raise UsageError(f"A prediction file must have a header and rows, got an empty file{_where(path)}.")
    if path.suffix.lower() == ".parquet":
        return _from_parquet(content, _where(path))
    return _from_csv(content, _where(path))


def shown(text: object) -> str:
    """Return an id or a name as a sentence shows it: on one line, and quoted where its spaces would not be seen."""
    plain = str(text)
    plain = plain if len(plain) <= LONGEST else plain[: LONGEST - 3] + "..."
    return plain if plain.isprintable() and plain == plain.strip() else repr(plain)


def _where(path: Path) -> str:
    return f" [in {shown(path.name)}]"


def _from_csv(content: bytes, where: str) -> pd.DataFrame:
    other = _other_format(content, "csv")
    if other:
        raise UsageError(f"A csv prediction file must be plain UTF-8 text, got {other}{where}. Save it as such.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"A csv prediction file must be UTF-8 text, got another encoding{where}.") from None
    if "\0" in text:
        raise UsageError(f"A csv prediction file must be UTF-8 text, got bytes of zero{where}.")
    try:
        lines = csv.reader(io.StringIO(text, newline=None))
        rows = (row for row in lines if len(row) > 1 or "".join(row).strip())
        names, first = next(rows), next(rows, [])
        if len(names) == 1 and re.search("[;\t|]", names[0]):
            kind = {";": "semicolons", "\t": "tabs", "|": "bars"}[re.search("[;\t|]", names[0])[0]]  # type: ignore[index]
            way_out = "Save it with commas, and with points in numbers."
            raise UsageError(f"A csv prediction file must part its columns by commas, got {kind}{where}. {way_out}")
        _check_names(names, where)
        if len(first) > len(names):  # pandas would take the first column for an index and shift all others
            raise UsageError(f"A csv row must have as many values as the header, got more in the first{where}.")
        # An id is its text; numbers are read to the nearest double, so that ties are those of the parquet twin.
        table = pd.read_csv(
            io.StringIO(text),
            dtype=dict.fromkeys(IDS, str),
            keep_default_na=False,
            na_values={name: [""] if name in IDS else list(MISSING) for name in names},
            float_precision="round_trip",
            low_memory=False,
        )
    except (pd.errors.ParserError, csv.Error) as error:
        line = re.search(r"in line (\d+)", str(error))
        found = f"more in line {line[1]}" if line else "a row that does not end"
        raise UsageError(f"A csv row must have as many values as the header, got {found}{where}.") from None
    table = table.set_axis(names, axis=1).loc[:, [bool(name.strip()) for name in names]]
    return table.assign(**{name: table[name].astype(object) for name in IDS if name in table})


def _from_parquet(content: bytes, where: str) -> pd.DataFrame:
    other = _other_format(content, "parquet")
    if other:
        raise UsageError(f"A .parquet prediction file must be parquet, got {other}{where}.")
    try:
        # Not `read_table` of pyarrow, which makes columns of folders that are named like `seed=0`.
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        table.validate(full=True)
        _check_names(table.column_names, where)
        columns, faults = {}, []
        for name, column in zip(table.column_names, table.columns, strict=True):
            if not name.strip() or re.fullmatch(r"__index_level_\d+__", name):
                continue
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)  # noqa: PLW2901
            fault = _wrong_type(name, column.type)
            faults += [f"Column `{shown(name)}` {fault}{where}."] if fault else []
            if name in IDS and not fault:
                columns[name] = pd.Series(column.cast(pa.string()).to_pylist(), dtype=object)
            elif _is_plain(column.type):
                decimal = pa.types.is_decimal(column.type)
                columns[name] = (column.cast(pa.float64()) if decimal else column).to_pandas(types_mapper=None)
        if faults:
            raise UsageError("\n".join(faults))
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        raise UsageError(f"A .parquet prediction file must be parquet, got an unreadable one{where}.") from None
    return pd.DataFrame(columns, index=range(table.num_rows))


def _wrong_type(name: str, type_: pa.DataType) -> str:
    if name in IDS:
        text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
        allowed = text or pa.types.is_integer(type_) or pa.types.is_null(type_)
        return "" if allowed else f"must be text or whole numbers, got {shown(type_)}"
    if name.startswith((TARGET, SCORE)) and not _is_plain(type_):
        return f"must be numbers, got {shown(type_)}"
    return ""


def _is_plain(type_: pa.DataType) -> bool:
    checks = (
        pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null,
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
    )  # fmt: skip
    return any(check(type_) for check in checks)


def _check_names(names: list[str], where: str) -> None:
    twice = sorted({name for name in names if name.strip() and names.count(name) > 1})
    if twice:
        which = ", ".join(f"`{shown(name)}`" for name in twice[:3]) + (", ..." if len(twice) > 3 else "")
        raise UsageError(f"A prediction file must name each column once, got {which} more than once{where}.")
    for name in names:
        if name in (TARGET, SCORE):
            raise UsageError(f"A finding must have a name, got the column `{name}`{where}. Name it `{name}<finding>`.")


def _other_format(content: bytes, expected: str) -> str:
    """Return what the file is by its first bytes, if that is known and not `expected`."""
    if expected == "parquet" and content[:4] != b"PAR1":
        text = b"\0" not in content and content[:1] < b"\x80"
        return next((name for start, name in OTHER_FORMATS.items() if content.startswith(start)), "text" * text)
    found = next((name for start, name in OTHER_FORMATS.items() if content.startswith(start)), "")
    return found if found != expected else ""
