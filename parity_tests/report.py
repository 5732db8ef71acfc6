"""The comparison as a table and as JSON."""

import dataclasses
import itertools
import json
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from parity_tests.compare import Row

_HEAD = ("tap", "shape", "err_jax", "err_torch", "ratio", "ulp", "err_f64", "verdict")


def table(rows: Iterable[Row]) -> str:
    """One line a tensor, under one heading a case."""
    lines: list[str] = []
    for (tier, case), group in itertools.groupby(rows, key=lambda row: (row.tier, row.case)):
        lines += [heading(tier, case), *map(line, group)]
    return "\n".join(lines)


def heading(tier: str, case: str) -> str:
    """The title of a case and of the columns of its tensors."""
    return "\n".join(["", f"{tier}: {case}", _line(_HEAD)])


def line(row: Row) -> str:
    """One tensor."""
    shape = "x".join(map(str, row.shape)) or "scalar"
    numbers = (_number(x, form) for x, form in zip(_measures(row), ("8.1e", "8.1e", "5.2f", "6.1f", "8.1e")))
    return _line((row.tap, shape, *numbers, f"FAIL {row.fault}" if row.fault else "ok"))


def _measures(row: Row) -> tuple[float, ...]:
    return row.err_jax, row.err_torch, row.ratio, row.ulp, row.err_float64


def _number(x: float, form: str) -> str:
    return "-" if math.isnan(x) else format(x, form).strip()


def _line(cells: Sequence[str]) -> str:
    """Cells in columns; in a terminal too narrow for all, without the shape, and of a long tap its end."""
    tap, shape, *others = cells
    widths = (8, 9, 6, 7, 8, 0)
    rest = " ".join(cell.ljust(width) for cell, width in zip(others, widths)).rstrip()
    if not sys.stdout.isatty() or shutil.get_terminal_size().columns >= 52 + 12 + sum(widths) + 10:
        return f"{tap:52} {shape:12} {rest}"
    room = max(24, shutil.get_terminal_size().columns - sum(widths) - 8)
    return f"{tap if len(tap) <= room else '…' + tap[1 - room :]:{room}} {rest}"


def summary(rows: Sequence[Row]) -> str:
    """Tensors, failures and the worst measures of every tier."""
    lines = [f"{'tier':12} {'tensors':>8} {'failed':>7} {'worst ratio':>12} {'worst ulp':>10} {'worst float64':>14}"]
    for tier in dict.fromkeys(row.tier for row in rows):
        mine = [row for row in rows if row.tier == tier]
        measured = [row for row in mine if math.isfinite(row.ratio)]
        worst = [max((abs(x) for x in xs if math.isfinite(x)), default=math.nan) for xs in zip(*map(_measures, mine))]
        failed = sum(bool(row.fault) for row in mine)
        ratio = max((row.ratio for row in measured), default=math.nan)
        lines.append(f"{tier:12} {len(mine):8} {failed:7} {ratio:12.2f} {worst[3]:10.1f} {worst[4]:14.1e}")
    return "\n".join(lines)


def to_json(rows: Iterable[Row], **more: Any) -> str:
    """The rows and more as JSON; numbers that are not finite become null."""
    plain = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in dataclasses.asdict(row).items()}
        for row in rows
    ]
    return json.dumps({"rows": plain, **more}, indent=1) + "\n"
