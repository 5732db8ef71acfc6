"""Names inside the folder of a run, and the contents of the files."""

import json
from pathlib import Path
from typing import Any

from mhc_jax.config import ConfigError

CONFIG_FILE, RUN_FILE = "config.json", "run.json"
METRICS_FILE, SUMMARY_FILE = "metrics.jsonl", "summary.json"
EPILOGUE_FILE, DISTILLATION_FILE = "sample.txt", "distillation.json"
# Scores of chosen checkpoints, and their curve.
RESULTS_FILE, CURVE_FILE = "eval_results.json", "eval_curve.png"
# An empty file: the loss was no longer finite, at the learning rate that a study tried.
DIVERGED_FILE = "diverged"


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, without one that a killed process left half written at its end.

    Raises:
        ConfigError: a line is not what :class:`MetricsLog` writes.
    """
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]
    return [_parsed(line, f"{file}, line {number}") for number, line in enumerate(lines, start=1)]


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is damaged ({str(error).splitlines()[0]}); remove that line") from None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        raise ConfigError(f"{where} is damaged (no object with a whole number as its step); remove that line")
    for name, value in values.items():
        fits = isinstance(value, dict) if name == "streams" else value is None or type(value) in (int, float)
        if not fits:
            raise ConfigError(f"{where} is damaged ({name} is not what a run writes); remove that line")
    return values


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The contents of a run's ``summary.json``; None if there is none, as before its end.

    Raises:
        ConfigError: it is damaged.
    """
    file = folder / SUMMARY_FILE
    if not file.is_file():
        return None
    try:
        summary = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is damaged ({str(error).splitlines()[0]})") from None
    if not isinstance(summary, dict):
        raise ConfigError(f"{file} is damaged (it holds no object)")
    return summary
