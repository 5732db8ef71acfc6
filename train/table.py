"""Tables as aligned Markdown, readable in a terminal and in a document."""

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row; columns are the rows' keys in order of appearance, numbers to the right, None left blank."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[text(row.get(column)) for column in columns] for row in rows]
    numeric = [all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]
    widths = [max(3, len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)]

    def line(texts: Sequence[str]) -> str:
        pairs = zip(texts, widths, numeric)
        return "| " + " | ".join(t.rjust(w) if right else t.ljust(w) for t, w, right in pairs) + " |"

    rule = ["-" * (w - 1) + ":" if right else "-" * w for w, right in zip(widths, numeric)]
    return "\n".join([line(columns), line(rule), *map(line, cells)])


def text(value: Any) -> str:
    """A cell: numbers with four digits, thousands separated."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
