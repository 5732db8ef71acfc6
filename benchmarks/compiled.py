"""Results of compilers for machines that are not here, in one JSON file and one Markdown page, by machine."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mhc_jax.config import ConfigError
from train.measure import target
from train.measure.versions import versions
from train.terminal.table import markdown

COMPILERS = ("libtpu", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")
Row = dict[str, Any]


def machine(name: str) -> target.Target:
    """The machine of that name, a type of arguments: there is one, and its compiler is installed."""
    target.prepare_environment()
    try:
        found = target.find(name)
        target.devices(found)
    except ConfigError as fault:
        raise argparse.ArgumentTypeError(str(fault).replace("--compile.topology ", "")) from None
    return found


def keep(out: Path, machine: str, command: str, rows: list[Row], same: tuple[str, ...]) -> dict[str, Any]:
    """All results, after rows of a machine have taken the place of those that agree with them in the columns ``same``.

    Others stay, since the compilers may be in separate environments.
    """
    file = out.with_suffix(".json")
    record = json.loads(file.read_text()) if file.exists() else {}
    of = {tuple(row[name] for name in same): row for row in [*record.get(machine, {}).get("rows", []), *rows]}
    record[machine] = {"command": command, "versions": versions(*COMPILERS), "rows": list(of.values())}
    file.write_text(json.dumps(record, indent=1) + "\n")
    return record


def page(title: str, how: str, record: dict[str, Any], shown: Callable[[list[Row]], list[Row]]) -> str:
    """Markdown: every machine with its versions and what is ``shown`` of its rows."""
    lines = [f"# {title}", "", how]
    for machine, told in record.items():
        names = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
        lines += ["", f"## {machine}", "", f"`{told['command']}`", "", names, "", markdown(shown(told["rows"]))]
    return "\n".join(lines) + "\n"


class Table(NamedTuple):
    """What a script finds, in a file and on a page.

    Attributes:
        script: its name.
        how: what the page says before the rows.
        same: columns that tell the rows of a machine apart.
        columns: those of the page.
    """

    script: str
    title: str
    how: str
    same: tuple[str, ...]
    columns: tuple[str, ...]

    def keep(self, out: Path, machine: str, row: Row) -> None:
        """Puts a row in its place in both."""
        record = keep(out, machine, f"python benchmarks/{self.script} {machine} --out {out}", [row], self.same)
        out.with_suffix(".md").write_text(page(self.title, self.how, record, self.shown))

    def shown(self, rows: list[Row]) -> list[Row]:
        """What the page has of them."""
        return [{column: row[column] for column in self.columns if column in row} for row in rows]
