"""The results of a benchmark: one JSON file and one Markdown table, with a description of the machine."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.benchmark.worker import cores
from train.terminal.table import markdown


def machine() -> dict[str, Any]:
    """Processor, cores used, memory, load before the start, accelerator, versions, date and command."""
    packages = ("jax", "jaxlib", "flax", "optax", "torch")
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "train.benchmark", *sys.argv[1:]]),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write(
    folder: Path, name: str, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> None:
    """Writes ``name.json`` and ``name.md`` into ``folder``.

    Args:
        about: see :func:`machine`, with the configuration.
        rows: one per measurement.
        notes: sentences below the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(
        json.dumps({**about, "rows": rows, "notes": notes}, indent=2) + "\n", encoding="utf-8"
    )
    facts = [f"- {key}: {value}" for key, value in about.items() if not isinstance(value, dict)]
    text = "\n\n".join([f"# {name}", "\n".join(facts), markdown(rows), *notes]) + "\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
