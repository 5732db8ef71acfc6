"""Runs side by side, as a table and one picture of their curves: ``python -m train.compare RUN RUN ...``."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mhc_jax.config import ConfigError
from train import cli
from train.metrics import read_metrics
from train.table import markdown

COLUMNS = {
    "val_loss": "loss",
    "val_ppl": "ppl",
    "val_bpb": "bits per byte",
    "unigram_ppl": "unigram ppl",
    "params": "parameters",
    "tokens": "tokens",
    "tokens_per_second": "tokens/s",
    "seconds": "s",
}


def summary_row(run: Path) -> dict[str, Any]:
    """What the run's ``summary.json`` says, by column.

    Raises:
        ConfigError: not a finished run.
    """
    file = run / "summary.json"
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: {run} is not a run directory, or its training has not finished")
    try:
        summary = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file} is damaged ({error})") from None
    return {"run": str(run), **{title: summary.get(key) for key, title in COLUMNS.items()}}


def mean_row(runs: Sequence[Path]) -> dict[str, Any]:
    """The means of :func:`summary_row` over runs of one folder, the loss with its standard deviation."""
    rows = [summary_row(run) for run in runs]
    mean: dict[str, Any] = {"runs": str(runs[0].parent), "seeds": len(rows)}
    for title in COLUMNS.values():
        values = [row[title] for row in rows if row[title] is not None]
        mean[title] = statistics.fmean(values) if values else None
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    if len(losses) > 1:
        mean["loss"] = f"{mean['loss']:.4f} ± {statistics.stdev(losses):.4f}"
    return mean


def draw_curves(groups: Sequence[Sequence[Path]], image: Path) -> None:
    """Training loss (thin) and validation loss (marked) by step, the runs of a group in one colour."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, group in enumerate(groups):
        for run in group:
            _draw(axes, run, f"C{index}", str(run if len(group) == 1 else run.parent) if run == group[0] else None)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title="Training (thin) and validation loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(image, dpi=150)


def _draw(axes: Axes, run: Path, colour: str, label: str | None) -> None:
    lines = read_metrics(run / "metrics.jsonl")
    for key, style in (("loss", {"linewidth": 0.6, "alpha": 0.5}), ("val_loss", {"marker": "o", "markersize": 4})):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points), color=colour, label=label if key == "val_loss" else None, **style)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compare finished runs.

    Attributes:
        runs: run directories.
        picture: where the curves are drawn.
        mean: runs of one folder, as seeds are, make one row.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    picture: str = "compare.png"
    mean: bool = False


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.compare")
    runs = [Path(run) for run in flags.runs]
    if not runs:
        raise ConfigError("give at least one run directory: python -m train.compare RUN RUN ...")
    groups: dict[Path, list[Path]] = {}
    for run in runs:
        groups.setdefault(run.parent if flags.mean else run, []).append(run)
    rows = [mean_row(group) if flags.mean else summary_row(run) for run, group in groups.items()]
    draw_curves(list(groups.values()), Path(flags.picture))
    print(markdown(rows), "", f"Curves drawn in {flags.picture}", sep="\n")


if __name__ == "__main__":
    cli.run(main)
