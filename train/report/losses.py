"""The loss curves of a run as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from train.report import figures
from train.storage.folder import METRICS_FILE, read_metrics

PICTURE_FILE = "loss.png"


def plot_losses(folder: Path, *, title: str, tokens_per_step: int, unigram_loss: float) -> None:
    """Draws training and validation loss of the run in ``folder``, and the unigram model's loss as a line.

    Args:
        folder: holds ``metrics.jsonl``; ``loss.png`` is written there.
        title: of the picture.
        tokens_per_step: for the axis at the top.
        unigram_loss: nats per token of the model that knows only how often each token occurs.
    """
    lines = read_metrics(folder / METRICS_FILE)

    def draw():
        figure = figures.new_figure(7, 4.4)
        axes = figure.subplots()
        draw_losses(axes, lines, unigram_loss, tokens_per_step)
        axes.set_title(title)
        return figure

    figures.save_png(draw, folder / PICTURE_FILE)


def draw_losses(
    axes: Axes, lines: Sequence[Mapping[str, Any]], unigram_loss: float | None, tokens_per_step: int
) -> None:
    """Training loss, validation loss and, if given, the unigram model's, of the lines of a ``metrics.jsonl``.

    A line joins what was measured on the same batches; the loss of the whole validation split stands by itself.
    """
    blue, orange, green = figures.COLOURS
    train, validation, whole = (_points(lines, key) for key in ("loss", "val_loss", "final_val_loss"))
    if unigram_loss is not None:
        label = f"unigram model, {unigram_loss:.3f}"
        axes.axhline(unigram_loss, color="0.5", linestyle="--", linewidth=1, label=label)
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
