"""A controlled comparison of residual topologies: ``python -m train.study NAME --out FOLDER``.

Every row trains on the same tokens with the same learning rates; the rate with the least validation loss at the first
seed is then trained with the other seeds. Finished runs are kept, so an interrupted study continues where it stopped.
"""

import contextlib
import dataclasses
import json
import math
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from mhc_jax.config import ConfigError
from mhc_jax.functional import parameter_count
from mhc_jax.models import with_topology
from train.config import RunConfig
from train.loop import named
from train.storage.folder import read_metrics
from train.storage.outputs import check_folder
from train.terminal import cli, interrupt
from train.terminal.console import say
from train.terminal.flags import Plugins
from train.terminal.table import markdown, terminal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATCHED = "plain_matched"
_REPORTED = ("val_loss", "params", "tokens", "tokens_per_second", "seconds")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compare residual topologies under one model, data set and budget.

    Attributes:
        plugins: modules to import first, here and in every run.
        name: name of the configuration; its topology is replaced.
        out: folder of all runs, ``study.json``, ``study.md`` and ``study.png``.
        topologies: rows; ``plain_matched`` is the plain model with an MLP widened to the parameter count of the
            largest other row.
        rates: learning rates tried at the first seed.
        seeds: seeds of the initial parameters and of the order of the data.
        jobs: number of runs at a time, each in its own process.
        train_flags: flags of ``python -m train`` for every run, as in ``--train-flags="--train.steps 500"``.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    out: str
    topologies: tuple[str, ...] = ("plain", MATCHED, "ihc", "hc", "mhc_original", "mhc", "dynamic_mhc", "mhc_lite")
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int = 1
    train_flags: str = ""
    plugins: Plugins = ()


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run of the study."""

    row: str
    rate: float
    seed: int

    def folder(self, out: Path) -> Path:
        """The folder of the run."""
        return out / self.row / f"lr{self.rate:g}-seed{self.seed}"


def row_flags(name: str, row: str, topologies: Sequence[str], flags: Sequence[str]) -> tuple[str, list[str]]:
    """The configuration name of a row, and the flags that it needs in addition to the common ones.

    Raises:
        ConfigError: an unknown topology or flag.
    """
    if row != MATCHED:
        _resolved(f"{name}@{row}", flags)
        return f"{name}@{row}", []
    base = _resolved(f"{name}@plain", flags)
    others = [row for row in topologies if row != MATCHED]
    target = max(parameter_count(with_topology(base.model, row)) for row in others)
    return f"{name}@plain", ["--model.mlp.hidden", str(matched_hidden(base, target))]


def matched_hidden(config: RunConfig, target: int) -> int:
    """The hidden width of the MLP at which the model has as nearly ``target`` parameters as can be.

    Raises:
        ConfigError: a model without MLP.
    """
    mlp = config.model.mlp
    if mlp is None:
        raise ConfigError(f"{MATCHED} widens the MLP, and {config.name} has none; leave it out of --topologies")

    def count(hidden: int) -> int:
        return parameter_count(config.model.replace(mlp=mlp.replace(hidden=hidden)))

    one, two = count(1), count(2)
    return max(1, round(1 + (target - one) / (two - one)))


def _resolved(name: str, flags: Sequence[str]) -> RunConfig:
    """The configuration with the flags of every run, its open vocabulary and length as a placeholder."""
    markers = (tyro.conf.AvoidSubcommands,)
    config = cli.parse(RunConfig, list(flags), prog="--train-flags", default=named.load(name), markers=markers)
    return config.sized(1)


class Children:
    """Processes that this one waits for, from several threads, and that it can end."""

    def __init__(self):
        self._lock, self._running, self._ended = threading.Lock(), set(), False

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        """The exit status of a process and its standard error, or else its output."""
        with self._lock:
            if self._ended:
                return 128 + signal.SIGTERM, ""
            # A separate session, because a second signal from the terminal would keep it from saving.
            process = subprocess.Popen(
                argv,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        printed, complaint = process.communicate()
        with self._lock:
            self._running.remove(process)
        return process.returncode, complaint or printed

    def end(self) -> None:
        """Asks those that run to stop, and starts no more."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()


def train(job: Job, flags: Flags, out: Path, children: Children) -> dict[str, Any]:
    """Trains one run unless it is finished, and returns its summary.

    Raises:
        ConfigError: the run failed; the message is its last line.
    """
    folder = job.folder(out)
    if not (folder / "summary.json").is_file():
        shared = [*cli.importing(flags.plugins), *flags.train_flags.split()]
        name, own = row_flags(flags.name, job.row, flags.topologies, shared)
        fixed = ["--run-dir", folder, "--optim.lr", job.rate, "--train.seed", job.seed, "--data.seed", job.seed]
        fixed += ["--train.resume", folder.exists()]
        argv = [sys.executable, "-m", "train", name, *shared, *own, *map(str, fixed)]
        status, said = children.run(argv)
        if status == 3:  # the loss was no longer finite: the rate is too high for this row
            return {"val_loss": math.inf}
        if status:
            raise ConfigError(f"{folder}: {(said.strip().splitlines() or [f'exit status {status}'])[-1]}")
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def study(flags: Flags) -> list[dict[str, Any]]:
    """All runs; one record a row: the rates tried, the best, and the summaries at that rate by seed."""
    out = Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    children = Children()
    with ThreadPoolExecutor(flags.jobs) as pool, _ending(children):

        def run(jobs: list[Job]) -> dict[Job, dict[str, Any]]:
            done = {}
            for job, summary in zip(jobs, pool.map(lambda job: train(job, flags, out, children), jobs)):
                say(f"{job.row}  lr {job.rate:g}  seed {job.seed}  validation loss {summary['val_loss']:.4f}")
                done[job] = summary
            return done

        tried = run([Job(row, rate, flags.seeds[0]) for row in flags.topologies for rate in flags.rates])
        best = {row: _best_rate(tried, row) for row in flags.topologies}
        done = tried | run([Job(row, best[row], seed) for row in flags.topologies for seed in flags.seeds[1:]])
    return [
        {
            "topology": row,
            "rate": best[row],
            "tried": {f"{job.rate:g}": summary["val_loss"] for job, summary in tried.items() if job.row == row},
            "seeds": {
                seed: {key: done[Job(row, best[row], seed)].get(key) for key in _REPORTED} for seed in flags.seeds
            },
        }
        for row in flags.topologies
    ]


@contextlib.contextmanager
def _ending(children: Children) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        children.end()
        raise


def _best_rate(tried: Mapping[Job, Mapping[str, Any]], row: str) -> float:
    return min((summary["val_loss"], job.rate) for job, summary in tried.items() if job.row == row)[1]


def table(records: Sequence[Mapping[str, Any]], rates: Sequence[float]) -> list[dict[str, Any]]:
    """One record per row: parameters, speed, validation loss by seed with its spread, and lead over the first row."""
    reference = _mean(records[0])
    rows = []
    for record in records:
        losses = [summary["val_loss"] for summary in record["seeds"].values()]
        first = next(iter(record["seeds"].values()))
        speeds = [summary["tokens_per_second"] for summary in record["seeds"].values() if summary["tokens_per_second"]]
        edge = record["rate"] in (min(rates), max(rates)) and len(rates) > 1
        rows.append(
            {
                "topology": record["topology"],
                "parameters": first["params"],
                "tokens/s": statistics.median(speeds) if speeds else None,
                "lr": f"{record['rate']:g}{' (edge of the grid)' if edge else ''}",
                "validation loss": f"{_mean(record):.4f} ± {statistics.stdev(losses) if len(losses) > 1 else 0:.4f}",
                "minus the first row": f"{_mean(record) - reference:+.4f}",
            }
        )
    return rows


def _mean(record: Mapping[str, Any]) -> float:
    return statistics.fmean(summary["val_loss"] for summary in record["seeds"].values())


def draw(records: Sequence[Mapping[str, Any]], out: Path, title: str) -> "Figure":
    """A small picture a row: its validation loss minus that of the first row, seed by seed, over steps.

    The line is the mean over seeds and the band their span; the grey band is the span of the first row's own seeds
    around their mean, so a difference within it may be noise.
    """
    from train.report import figures

    curves = [_curves(record, out) for record in records]
    steps = sorted(set.intersection(*(set(by_step) for row in curves for by_step in row.values())))
    losses = np.array([[[by_step[step] for step in steps] for by_step in row.values()] for row in curves])
    reference, others = losses[0], losses[1:]
    noise = reference - reference.mean(0)
    columns = min(3, max(len(others), 1))
    figure = figures.new_figure(3.2 * columns + 0.6, 2.5 * math.ceil(len(others) / columns) + 0.8)
    figure.suptitle(title)
    grid = figure.subplots(math.ceil(max(len(others), 1) / columns), columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(others) :]:
        axes.set_axis_off()
    for axes, record, row in zip(grid.flat, records[1:], others):
        difference = row - reference
        axes.fill_between(steps, noise.min(0), noise.max(0), color="0.5", alpha=0.2, linewidth=0)
        axes.axhline(0, color="0.5", linewidth=0.8, linestyle="--")
        axes.fill_between(
            steps, difference.min(0), difference.max(0), color=figures.COLOURS[0], alpha=0.25, linewidth=0
        )
        axes.plot(steps, difference.mean(0), color=figures.COLOURS[0], linewidth=1.5)
        axes.set_title(f"{record['topology']}, lr {record['rate']:g}: {difference.mean(0)[-1]:+.3f}", loc="left")
    figure.supylabel(f"validation loss minus {records[0]['topology']} (nats per token)", fontsize="small")
    figure.supxlabel("step", fontsize="small")
    return figure


def _curves(record: Mapping[str, Any], out: Path) -> dict[int, dict[int, float]]:
    """Validation loss by seed and step."""
    curves = {}
    for seed in record["seeds"]:
        lines = read_metrics(Job(record["topology"], record["rate"], seed).folder(out) / "metrics.jsonl")
        curves[seed] = {line["step"]: line["val_loss"] for line in lines if line.get("val_loss") is not None}
    return curves


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.study")
    if not flags.topologies or not flags.rates or not flags.seeds or flags.jobs < 1:
        raise ConfigError("--topologies, --rates and --seeds need at least one value each, --jobs at least 1")
    check_folder("--out", flags.out)
    for plugin in flags.plugins:
        cli.load_plugin(plugin)
    for row in flags.topologies:
        row_flags(flags.name, row, flags.topologies, flags.train_flags.split())  # bad names are met before any run
    with interrupt.advising("interrupted: what was trained is saved; the same command continues from here"):
        records, out = study(flags), Path(flags.out)
    rows = table(records, flags.rates)
    found = {"flags": dataclasses.asdict(flags), "rows": records}
    (out / "study.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "study.md").write_text(markdown(rows) + "\n", encoding="utf-8")
    source = Path(_resolved(flags.name, flags.train_flags.split()).data.label).name
    title = f"{flags.name} on {source}, {len(flags.seeds)} seeds"
    from train.report import figures

    figures.save_png(lambda: draw(records, out, title), out / "study.png")
    print(terminal(rows), "", f"Differences drawn in {out / 'study.png'}", sep="\n")


if __name__ == "__main__":
    cli.run(main)
