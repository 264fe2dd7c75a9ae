"""CSV files with a header line, read with line numbers kept for complaints."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadgen.traces.row import TraceError


class Line:
    """The named cells of one line of a CSV file."""

    __slots__ = ("_cells", "_columns", "_path", "number")

    def __init__(self, path: Path, number: int, columns: dict[str, int], cells: list[str]) -> None:
        self._path = path
        self._columns = columns
        self._cells = cells
        self.number = number

    def error(self, reason: str) -> TraceError:
        return TraceError(self._path, self.number, reason)

    def text(self, column: str) -> str:
        return self._cells[self._columns[column]].strip()

    def optional(self, column: str) -> str | None:
        """The cell, or None if it is empty or the file has no such column."""
        return (self.text(column) or None) if column in self._columns else None

    def count(self, column: str) -> int:
        """A whole number, 0 or more."""
        text = self.text(column)
        if not (text.isascii() and text.isdigit()):
            raise self.error(f"{column} must be a whole number, 0 or more, not {text!r}")
        return int(text)

    def seconds(self, column: str) -> float:
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(f"{column} must be a number of seconds, not {text!r}")
        return value


def read_table(path: Path, required: Sequence[str]) -> Iterator[Line]:
    """Every line below the header that is not blank. Raises `TraceError` if a required column is missing
    from the header or a line has fewer or more cells than the header."""
    # A byte that is not UTF-8 becomes a character that no number has, so its line is named by the checks.
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in required if name not in header]
        if missing:
            found = ", ".join(header) or "nothing"
            raise TraceError(path, 1, f"missing column {', '.join(missing)} (the header has {found})")
        columns = {name: index for index, name in enumerate(header)}
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                line = Line(path, reader.line_num, columns, cells)
                if len(cells) != len(header):
                    raise line.error(f"{len(cells)} cells where the header has {len(header)}")
                yield line
        except csv.Error as error:
            raise TraceError(path, reader.line_num, str(error)) from error
