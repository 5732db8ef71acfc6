"""The loss curves of a run as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from train.report import figures
from train.storage.folder import METRICS_FILE, read_metrics

PICTURE_FILE = "loss.png"


def plot_losses(folder: Path, *, title: str, tokens_per_step: int, baselines: Mapping[str, float]) -> None:
    """Draws training and validation loss of the run in ``folder``, and each baseline as a line.

    Args:
        folder: holds ``metrics.jsonl``; ``loss.png`` is written there.
        title: title of the plot.
        tokens_per_step: for the axis at the top.
        baselines: losses of simple models by name, see :meth:`train.data.kind.Data.baselines`.
    """
    lines = read_metrics(folder / METRICS_FILE)

    def draw():
        figure = figures.new_figure(7, 4.4)
        axes = figure.subplots()
        draw_losses(axes, lines, baselines, tokens_per_step)
        axes.set_title(title)
        return figure

    figures.save_png(draw, folder / PICTURE_FILE)


def draw_losses(
    axes: Axes, lines: Sequence[Mapping[str, Any]], baselines: Mapping[str, float], tokens_per_step: int
) -> None:
    """Training loss and validation loss of the lines of a ``metrics.jsonl``, and the baselines.

    A line joins losses on the same batches; the loss on the whole validation split is a separate point.
    """
    blue, orange, green = figures.COLOURS
    train, validation, whole = (_points(lines, key) for key in ("loss", "val_loss", "final_val_loss"))
    for name, loss in baselines.items():
        axes.axhline(loss, color="0.5", linestyle="--", linewidth=1, label=f"{name} model, {loss:.3f}")
    if train:
        axes.plot(*zip(*train), color=blue, linewidth=1, label="training")
    if validation:
        label = f"validation, last {validation[-1][1]:.3f}"
        axes.plot(*zip(*validation), color=orange, marker="o", markersize=4, label=label)
    if whole:
        label = f"whole validation split, {whole[-1][1]:.3f}"
        axes.plot(*zip(*whole), color=green, linestyle="none", marker="D", markersize=5, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.xaxis.set_major_formatter(figures.COUNTS)
    scales = lambda x: np.multiply(x, tokens_per_step), lambda x: np.divide(x, tokens_per_step)
    tokens = axes.secondary_xaxis("top", functions=scales)
    tokens.set_xlabel("training tokens")
    tokens.xaxis.set_major_formatter(figures.COUNTS)
    axes.legend()


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]
