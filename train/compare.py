"""Runs side by side, as tables and pictures of their curves: ``python -m train.compare RUN RUN ...``."""

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mhc_jax.config import ConfigError
from train.config import RunConfig, recorded
from train.storage.folder import CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, read_metrics, read_summary
from train.storage.outputs import check_file, json_text
from train.terminal import cli
from train.terminal.table import terminal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from train.report.history import Points

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
    """The contents of the run's ``summary.json`` by the titles of :data:`COLUMNS`, and further scores by name.

    Those of a run that has not finished but whose checkpoints were scored are empty.

    Raises:
        ConfigError: neither.
    """
    from train.report.history import read_results

    summary = read_summary(run)
    if summary is None and read_results(run):
        summary = {}
    if summary is None:
        file = run / SUMMARY_FILE
        raise ConfigError(f"{file} does not exist: {run} is not a run directory, or its training has not finished")
    further = {key: key.removeprefix("val_") for key in summary if key.startswith("val_") and key not in COLUMNS}
    return {title: summary.get(key) for key, title in {**further, **COLUMNS}.items()}


def mean_row(runs: Sequence[Path]) -> dict[str, Any]:
    """The means of :func:`summary_row` over runs of one folder, the loss with its standard deviation."""
    rows = [summary_row(run) for run in runs]
    mean: dict[str, Any] = {"seeds": len(rows)}
    for title in dict.fromkeys(title for row in rows for title in row):
        values = [row[title] for row in rows if row.get(title) is not None]
        mean[title] = statistics.fmean(values) if values else None
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    if len(losses) > 1:
        mean["loss"] = f"{mean['loss']:.4f} ± {statistics.stdev(losses):.4f}"
    return mean


# Settings that make the losses of two runs incomparable; each is a column of the table if it differs.
MEASURES = {"data": lambda config: config.data.label, "tokenizer": lambda config: config.data.unit}


def measures(configs: Mapping[str, Sequence[RunConfig]]) -> dict[str, dict[str, str]]:
    """Those of :data:`MEASURES` in which runs differ, by label."""
    found = {
        label: {title: ", ".join(dict.fromkeys(map(tell, group))) for title, tell in MEASURES.items()}
        for label, group in configs.items()
    }
    differ = [title for title in MEASURES if len({row[title] for row in found.values()}) > 1]
    return {label: {title: row[title] for title in differ} for label, row in found.items()}


def draw_curves(groups: Mapping[str, Sequence[Path]]) -> "Figure":
    """Loss by training tokens, the runs of a group in one colour, and a plot for each corpus.

    Where tokenizers differ, a token is not the same amount of text: bits per byte of validation text are drawn then.
    """
    from train.report import figures

    configs = {run: read_config(run) for runs in groups.values() for run in runs}
    comparable = len({config.data.unit for config in configs.values()}) == 1
    key, unit = ("val_loss", "nats per token") if comparable else ("val_bpb", "bits per byte")
    corpora = list(dict.fromkeys(config.data.label for config in configs.values()))
    figure = figures.new_figure(8, 1.5 + 3.5 * len(corpora))
    grid = dict(zip(corpora, figure.subplots(len(corpora), 1, sharex=True, squeeze=False)[:, 0]))
    for index, (label, runs) in enumerate(groups.items()):
        named = set()
        for run in runs:
            colour, lines = f"C{index % 10}", read_metrics(run / METRICS_FILE)
            axes, per_step = grid[configs[run].data.label], configs[run].data.batch_size * configs[run].data.seq_len
            if comparable:
                _plot(axes, lines, "loss", per_step, color=colour, linewidth=0.6, alpha=0.5)
            # One entry in a legend for the whole group.
            words = None if axes in named else label
            _plot(axes, lines, key, per_step, color=colour, marker="o", markersize=4, label=words)
            named.add(axes)
    for name, axes in grid.items():
        axes.set(ylabel=unit, title=name if len(grid) > 1 else "")
        axes.xaxis.set_major_formatter(figures.COUNTS)
        axes.legend()
    axes.set_xlabel("training tokens")
    title = "Validation loss, training loss thin" if comparable else "Validation text of different tokenizers"
    figure.suptitle(title + "; losses of different corpora do not compare" * (len(grid) > 1))
    return figure


def _plot(axes: "Axes", lines: Sequence[Mapping[str, Any]], key: str, per_step: int, **style: Any) -> None:
    points = [(line["step"] * per_step, line[key]) for line in lines if line.get(key) is not None]
    if points:
        axes.plot(*zip(*points), **style)


def read_config(run: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        ConfigError: the configuration is missing or damaged.
    """
    try:
        return recorded(run / CONFIG_FILE)
    except FileNotFoundError:
        raise ConfigError(f"{run / CONFIG_FILE} does not exist: {run} is not a run directory") from None


def short_names(paths: Sequence[Path]) -> tuple[Path, list[str]]:
    """The folder that contains all paths, and the distinguishing part of each path."""
    paths = [path.absolute() for path in paths]
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return common, [str(path.relative_to(common)) for path in paths]


def experiments(runs: Mapping[str, Path]) -> tuple[list[dict[str, Any]], dict[str, "Points"]]:
    """The last and the least loss of every run on each of the data that it was scored on, and the losses by step."""
    from train.report.history import extremes, history

    scored = {name: history(run, read_config(run)) for name, run in runs.items()}
    apart = len({data for found in scored.values() for data in found}) > 1
    rows, lines = [], {}
    for name, found in scored.items():
        for data, points in found.items():
            rows.append({"name": name, "path": str(runs[name]), "data": data, **extremes(points)})
            lines[f"{name} on {data}" if apart else name] = points
    return rows, lines


def _without_empty(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table without columns that are empty in all rows."""
    filled = {title for row in rows for title, value in row.items() if value is not None}
    return [{title: value for title, value in row.items() if title in filled} for row in rows]


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compare finished runs, and others whose checkpoints train.evaluate --steps has scored.

    Attributes:
        runs: run directories.
        picture: file of the curves by tokens; empty for ``compare.png`` in the folder that holds the runs. Loss and
            perplexity by step are drawn beside it, in ``compare_steps.png``, and summed up in ``compare.json``.
        mean: whether runs of one folder, such as several seeds, make one row of means.
    """

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    picture: str = ""
    mean: bool = False


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.compare")
    from train.report import figures, history

    runs = [Path(run) for run in flags.runs]
    if not runs:
        raise ConfigError("give at least one run directory: python -m train.compare RUN RUN ...")
    groups: dict[Path, list[Path]] = {}
    for run in runs:
        groups.setdefault(run.parent if flags.mean else run, []).append(run)
    folder, names = short_names(list(groups))
    picture = check_file("--picture", flags.picture or folder / "compare.png")
    if picture.suffix == ".json":
        raise ConfigError(f"--picture {picture} is the name of its summary; call it {picture.with_suffix('.png')}")
    rows = [mean_row(group) if flags.mean else summary_row(run) for run, group in groups.items()]
    named = dict(zip(names, groups.values()))
    apart = measures({name: [*map(read_config, group)] for name, group in named.items()})
    figures.save_png(lambda: draw_curves(named), picture)
    scored, lines = experiments(dict(zip(short_names(runs)[1], runs)))
    by_step, summary = picture.with_name(f"{picture.stem}_steps.png"), picture.with_suffix(".json")
    if lines:
        figures.save_png(lambda: history.draw(lines, ""), by_step)
    summary.write_text(json_text({"experiments": scored}), encoding="utf-8")
    rows = [{"runs" if flags.mean else "run": name, **apart[name], **row} for name, row in zip(names, rows)]
    tables = [terminal(_without_empty(rows))]
    if scored:
        tables.append("By step, as logged in training or scored by train.evaluate --steps")
        tables.append(terminal([{key: value for key, value in row.items() if key != "path"} for row in scored]))
    files = f"Curves drawn in {picture}{f' and {by_step}' if lines else ''}; summary in {summary}"
    print(f"Runs of {folder}", *tables, files, sep="\n\n")


if __name__ == "__main__":
    cli.run(main)
