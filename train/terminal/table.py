"""Tables as aligned Markdown, as wide as they are for a document, or folded to the width of a terminal."""

import dataclasses
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class _Column:
    """Cells of one column as lines of text, the title first."""

    cells: Sequence[Sequence[str]]
    right: bool

    @property
    def width(self) -> int:
        return max(3, *(len(line) for cell in self.cells for line in cell))

    def wrapped(self, width: int) -> "_Column":
        cells = [[part for line in cell for part in textwrap.wrap(line, width) or [""]] for cell in self.cells]
        return _Column(cells, self.right)

    def lines(self) -> list[list[str]]:
        """The cells padded to one width, a rule after the title."""
        w = self.width
        padded = [[line.rjust(w) if self.right else line.ljust(w) for line in cell] for cell in self.cells]
        return [padded[0], ["-" * (w - 1) + ":" if self.right else "-" * w], *padded[1:]]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row; columns are the rows' keys in order of appearance, numbers to the right, None left blank."""
    return _joined(_columns(rows))


def terminal(rows: Sequence[Mapping[str, Any]], width: int | None = None) -> str:
    """:func:`markdown` within the width of the terminal, 80 where there is none.

    Columns that do not fit follow in a further table under the first column; long cells take several lines.
    """
    width = width or shutil.get_terminal_size().columns
    columns = _columns(rows)
    if len(_joined(columns).split("\n", 1)[0]) <= width:
        return _joined(columns)
    name, *others = columns
    name = name.wrapped(width // 2)
    tables, room = [[name]], width - name.width - 4
    left = room
    for column in others:
        column = column.wrapped(room - 3)
        if column.width + 3 > left:  # alone beside the first one it fits
            tables.append([name])
            left = room
        tables[-1].append(column)
        left -= column.width + 3
    return "\n\n".join(map(_joined, tables))


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[_Column]:
    titles = dict.fromkeys(key for row in rows for key in row)
    return [
        _Column(
            [[title], *([text(row.get(title))] for row in rows)],
            all(isinstance(row.get(title), int | float | None) for row in rows),
        )
        for title in titles
    ]


def _joined(columns: Sequence[_Column]) -> str:
    lines = []
    for cells in zip(*(column.lines() for column in columns)):
        for i in range(max(map(len, cells))):
            parts = (cell[i] if i < len(cell) else " " * len(cell[0]) for cell in cells)
            lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


def text(value: Any) -> str:
    """A cell: numbers with four digits, thousands separated."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
