"""The scores of a run's checkpoints by step: the file that keeps them, their picture, and their summary."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from mhc_jax.config import ConfigError, read_json
from train.config import RunConfig
from train.data.files import replacing
from train.report import figures
from train.storage.folder import CURVE_FILE, METRICS_FILE, RESULTS_FILE, read_metrics

# Of a score, what it is a score of; a new one of the same takes its place.
KEY = ("data", "split", "seq_len", "step")

Result = dict[str, Any]
# Step, loss in nats per token, and perplexity where the data has one.
Points = list[tuple[int, float, float | None]]


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
    figures.save_png(lambda: draw(_by_data(kept), config.name), folder / CURVE_FILE)


def history(folder: Path, config: RunConfig) -> dict[str, Points]:
    """Losses by the data they were measured on: those logged in training, unless its data was scored as a whole."""
    lines = read_metrics(folder / METRICS_FILE)
    own = [_point(line) for line in lines if line.get("val_loss") is not None]
    return ({config.data.label: own} if own else {}) | _by_data(read_results(folder))


def _by_data(results: Sequence[Result]) -> dict[str, Points]:
    found: dict[str, Points] = {}
    for result in results:
        suffix = "" if result["split"] == "validation" else f" ({result['split']})"
        found.setdefault(f"{result['data']}{suffix}", []).append(_point(result))
    return {data: sorted(points, key=lambda point: point[0]) for data, points in found.items()}


def _point(result: Mapping[str, Any]) -> tuple[int, float, float | None]:
    return result["step"], result["val_loss"], result.get("val_ppl")


def draw(lines: Mapping[str, Points], title: str) -> Figure:
    """Loss by step, a line each, and perplexity where there is one."""
    with_ppl = any(ppl is not None for points in lines.values() for _, _, ppl in points)
    figure = figures.new_figure(12 if with_ppl else 6, 5)
    figure.suptitle(title)
    loss, *others = figure.subplots(1, 1 + with_ppl, squeeze=False)[0]
    for index, (label, points) in enumerate(lines.items()):
        steps, losses, ppls = zip(*points)
        style: dict[str, Any] = {"color": f"C{index % 10}", "marker": "o", "label": label}
        loss.plot(steps, losses, **style)
        for ppl in others:
            ppl.plot(steps, [math.nan if one is None else one for one in ppls], **style)
    loss.set(xlabel="step", ylabel="validation loss (nats per token)")
    for ppl in others:
        ppl.set(xlabel="step", ylabel="validation perplexity", yscale="log")
        ppl.yaxis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter())  # 20, not 2 x 10^1
    for axes in (loss, *others):
        axes.xaxis.set_major_formatter(figures.COUNTS)
        axes.legend()
    return figure


def extremes(points: Points) -> dict[str, float]:
    """The last and the least loss, with their steps and their perplexities, if any."""
    found = {}
    for name, (step, loss, ppl) in {"final": points[-1], "best": min(points, key=lambda point: point[1])}.items():
        found |= {f"{name}_step": step, f"{name}_loss": loss} | ({} if ppl is None else {f"{name}_ppl": ppl})
    return found
