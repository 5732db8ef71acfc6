"""The loss curves of a run as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from train.metrics import read_metrics


def plot_losses(metrics_file: Path, image_file: Path, *, title: str, unigram_loss: float) -> None:
    """Draws training and validation loss over steps, and the unigram model's loss as a line.

    Args:
        metrics_file: ``metrics.jsonl`` of a run.
        image_file: PNG to write.
        title: of the picture.
        unigram_loss: nats per token of the model that knows only how often each token occurs.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw_losses(axes, read_metrics(metrics_file), unigram_loss)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.savefig(image_file, dpi=150)


def draw_losses(axes: Axes, lines: Sequence[Mapping[str, Any]], unigram_loss: float | None) -> None:
    """Training loss, validation loss and, if given, the unigram model's, of the lines of a ``metrics.jsonl``.

    A line joins what was measured on the same batches; the loss of the whole validation split stands by itself.
    """
    train = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    validation = [(line["step"], line["val_loss"]) for line in lines if line.get("val_loss") is not None]
    if unigram_loss is not None:
        label = f"unigram model, {unigram_loss:.3f}"
        axes.axhline(unigram_loss, color="0.5", linestyle="--", linewidth=1, label=label)
    if train:
        axes.plot(*zip(*train), color="tab:blue", linewidth=0.8, alpha=0.7, label="training")
    if validation:
        label = f"validation, last {validation[-1][1]:.3f}"
        axes.plot(*zip(*validation), color="tab:orange", marker="o", markersize=4, label=label)
    whole = [(line["step"], line["final_val_loss"]) for line in lines if line.get("final_val_loss") is not None]
    if whole:
        label = f"whole validation split, {whole[-1][1]:.3f}"
        axes.plot(*zip(*whole), color="tab:red", linestyle="none", marker="D", markersize=5, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend()
