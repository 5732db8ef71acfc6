"""The scores of a run's checkpoints by step: the file that keeps them, their picture, and their summary."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mhc_jax.config import ConfigError, read_json
from train.config import RunConfig
from train.data.files import replacing
from train.report import figures
from train.storage.folder import METRICS_FILE, read_metrics

RESULTS_FILE, PICTURE_FILE = "eval_results.json", "eval_curve.png"
# Of a score, what it is a score of; a new one of the same takes its place.
KEY = ("data", "split", "seq_len", "step")

Result = dict[str, Any]
# Step and loss in nats per token.
Points = list[tuple[int, float]]


def read_results(folder: Path) -> list[Result]:
    """The scores in the folder of a run, in the order of their steps; none if it has none.

    Raises:
        ConfigError: the file is damaged.
    """
    file = folder / RESULTS_FILE
    if not file.is_file():
        return []
    found = read_json(file)
    results = found.get("results") if isinstance(found, dict) else None
    if not (isinstance(results, list) and all(map(_is_result, results))):
        raise ConfigError(f"{file} is damaged (it holds no results); remove it and evaluate again")
    return results


def _is_result(result: Any) -> bool:
    return isinstance(result, dict) and {*KEY, "val_loss", "val_ppl"} <= {*result} and type(result["step"]) is int


def add_results(folder: Path, config: RunConfig, results: Iterable[Result]) -> None:
    """Adds scores to those in the folder of a run, and draws them all."""
    merged = {tuple(result[name] for name in KEY): result for result in [*read_results(folder), *results]}
    kept = [merged[key] for key in sorted(merged)]
    found = {"model": config.name, "config": config.to_dict(), "results": kept}
    with replacing(folder / RESULTS_FILE) as file:
        file.write(f"{json.dumps(found, indent=1)}\n".encode())
    figures.save_png(lambda: draw(_by_data(kept), config.name), folder / PICTURE_FILE)


def history(folder: Path, config: RunConfig) -> dict[str, Points]:
    """Losses by the data they were measured on: those logged in training, unless its data was scored as a whole."""
    lines = read_metrics(folder / METRICS_FILE)
    own = [(line["step"], line["val_loss"]) for line in lines if line.get("val_loss") is not None]
    return ({config.data.label: own} if own else {}) | _by_data(read_results(folder))


def _by_data(results: Sequence[Result]) -> dict[str, Points]:
    found: dict[str, Points] = {}
    for result in results:
        suffix = "" if result["split"] == "validation" else f" ({result['split']})"
        found.setdefault(f"{result['data']}{suffix}", []).append((result["step"], result["val_loss"]))
    return {data: sorted(points) for data, points in found.items()}


def draw(lines: Mapping[str, Points], title: str) -> Figure:
    """Loss and perplexity by step, a line each."""
    figure = figures.new_figure(12, 5)
    figure.suptitle(title)
    loss, ppl = figure.subplots(1, 2)
    for index, (label, points) in enumerate(lines.items()):
        steps, losses = zip(*points)
        style: dict[str, Any] = {"color": f"C{index % 10}", "marker": "o", "label": label}
        loss.plot(steps, losses, **style)
        ppl.plot(steps, [_ppl(one) for one in losses], **style)
    loss.set(xlabel="step", ylabel="validation loss (nats per token)")
    ppl.set(xlabel="step", ylabel="validation perplexity", yscale="log")
    for axes in (loss, ppl):
        axes.xaxis.set_major_formatter(figures.COUNTS)
        axes.legend()
    return figure


def extremes(points: Points) -> dict[str, float]:
    """The last and the least loss, with their steps and perplexities."""
    (final_step, final), (best_step, best) = points[-1], min(points, key=lambda point: point[1])
    return {
        "final_step": final_step,
        "final_loss": final,
        "final_ppl": _ppl(final),
        "best_step": best_step,
        "best_loss": best,
        "best_ppl": _ppl(best),
    }


def _ppl(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
