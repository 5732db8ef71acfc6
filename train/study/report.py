"""What a study has found: tables, remarks on whether its rows compare, pictures, and one page."""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mhc_jax.functional import param_info, parameter_count
from mhc_jax.nn.model import ModelConfig
from train.study.plan import Job, Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Row = dict[str, Any]
# Parameters and tokens that differ by less are called equal.
EQUAL = 0.02


def without_embeddings(model: ModelConfig) -> int:
    """The number of parameters without tables and without the head."""
    return sum(math.prod(info.shape) for info in param_info(model).values() if not {"vocab", "position"} & {*info.axes})


def table(plan: Plan, records: Sequence[Record]) -> list[Row]:
    """One line per row: size, tokens, speed, memory, loss by seed with its spread, and lead over the first row."""
    reference = _mean(records[0])
    rows = []
    for record in records:
        found = list(record["seeds"].values())
        losses, first, rates = [one["val_loss"] for one in found], found[0], plan.rates_of(record["row"])
        edge = record["rate"] in (min(rates), max(rates)) and len(rates) > 1
        speeds = [one["tokens_per_second"] for one in found if one["tokens_per_second"]]
        peaks = [one["peak_bytes"] for one in found if one["peak_bytes"]]
        rows.append(
            {
                "row": record["row"],
                "parameters": first["params"],
                "without embeddings": without_embeddings(plan.config(record["row"]).sized(1).model),
                "scored tokens": first["scored_tokens"],
                "tokens/s": statistics.median(speeds) if speeds else None,
                **({"peak MiB": max(peaks) / 2**20} if peaks else {}),
                "lr": f"{record['rate']:g}{' (edge of the grid)' if edge else ''}",
                "validation loss": _loss(losses),
                "minus the first row": f"{lead:+.4f}" if math.isfinite(lead := _mean(record) - reference) else None,
            }
        )
    return rows


def _mean(record: Record) -> float:
    return statistics.fmean(summary["val_loss"] for summary in record["seeds"].values())


def _loss(losses: Sequence[float]) -> str:
    """Mean and spread over seeds, or how many of them diverged."""
    finite = sum(map(math.isfinite, losses))
    if finite < len(losses):
        return f"diverged with {len(losses) - finite} of {len(losses)} seeds"
    return f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses) if len(losses) > 1 else 0:.4f}"


def remarks(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """Whether the rows have as many parameters, have learned from as many tokens, and differ in more than the model."""
    found = [
        _equality(name, [row[name] for row in rows]) for name in ("parameters", "without embeddings", "scored tokens")
    ]
    if differ := differences(plan):
        found.append(f"Settings that differ beside the model: {', '.join(differ)}.")
    return [*filter(None, found)]


def _equality(name: str, values: Sequence[int | None]) -> str:
    known = [value for value in values if value]
    if len(known) < 2 or len(known) < len(values):
        return ""
    low, high = min(known), max(known)
    title = {"without embeddings": "Parameters without embeddings"}.get(name, name.capitalize())
    if high <= (1 + EQUAL) * low:
        return f"{title}: equal within {high / low - 1:.2%}."
    return f"{title}: NOT equal, {low:,} to {high:,}."


def differences(plan: Plan) -> list[str]:
    """Settings of data, objective, optimizer and training in which rows differ, but for a rate that is tuned."""
    records = [plan.config(row.label).to_dict() for row in plan.rows]
    parts = ("data", "objective", "optim", "train")
    flat = [{f"{part}.{name}": value for part in parts for name, value in record[part].items()} for record in records]
    names = dict.fromkeys(name for one in flat for name in one)
    tuned = {"optim.lr"} if plan.rates else set()
    return [name for name in names if name not in tuned and any(one.get(name) != flat[0].get(name) for one in flat)]


def curves(plan: Plan, record: Record) -> dict[int, dict[int, float]]:
    """Validation loss by seed and step."""
    return {
        seed: {
            line["step"]: line["val_loss"]
            for line in plan.metrics(Job(record["row"], record["rate"], seed))
            if line.get("val_loss") is not None
        }
        for seed in plan.seeds
    }


def draw_curves(plan: Plan, records: Sequence[Record], title: str, *, narrow: bool = False) -> "Figure":
    """Validation loss by training tokens: a line for the mean of each row over its seeds, a band for their span."""
    from train.report import figures

    figure = figures.new_figure(*(4.2, 3.4) if narrow else (9, 4.4))
    axes = figure.subplots()
    for index, record in enumerate(records):
        data, by_seed = plan.config(record["row"]).data, [*curves(plan, record).values()]
        steps = sorted(set.intersection(*map(set, by_seed)))
        losses = np.array([[one[step] for step in steps] for one in by_seed]).reshape(len(by_seed), len(steps))
        tokens, colour = np.multiply(steps, data.batch_size * data.seq_len), f"C{index % 10}"
        if steps:
            axes.fill_between(tokens, losses.min(0), losses.max(0), color=colour, alpha=0.2, linewidth=0)
            axes.plot(tokens, losses.mean(0), color=colour, marker="o", markersize=3, label=record["row"])
    axes.set(xlabel="training tokens", ylabel="validation loss (nats per token)", title=title)
    axes.xaxis.set_major_formatter(figures.COUNTS)
    if axes.lines:
        axes.legend()
    return figure


def draw(plan: Plan, records: Sequence[Record], title: str) -> "Figure":
    """A small picture a row: its validation loss minus that of the first row, seed by seed, over steps.

    The line is the mean over seeds and the band their span; the grey band is the span of the first row's own seeds
    around their mean, so a difference within it may be noise. Rows without common steps are drawn by
    :func:`draw_curves`.
    """
    from train.report import figures

    by_row = [curves(plan, record) for record in records]
    steps = sorted(set.intersection(*(set(by_step) for row in by_row for by_step in row.values())))
    if not steps:
        return draw_curves(plan, records, title)
    losses = np.array([[[by_step[step] for step in steps] for by_step in row.values()] for row in by_row])
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
        axes.set_title(f"{record['row']}, lr {record['rate']:g}: {difference.mean(0)[-1]:+.3f}", loc="left")
    figure.supylabel(f"validation loss minus {records[0]['row']} (nats per token)", fontsize="small")
    figure.supxlabel("step", fontsize="small")
    return figure


def page(plan: Plan, records: Sequence[Record], title: str) -> str:
    """A self-contained page: the table, the curves, what each seed and each learning rate gave, and every command."""
    from train.report import markup

    rows = table(plan, records)
    by_seed = [
        {"row": record["row"], **{f"seed {seed}": one["val_loss"] for seed, one in record["seeds"].items()}}
        for record in records
    ]
    tried = [
        {"row": record["row"], **{f"lr {rate}": loss for rate, loss in record["tried"].items()}} for record in records
    ]
    jobs = [Job(record["row"], record["rate"], seed) for record in records for seed in plan.seeds]
    runs = [
        {"folder": str(job.folder(plan.out)), "command": shlex.join(["python", *plan.command(job)])} for job in jobs
    ]
    sections = {
        "Results": [markup.table(rows), *map(markup.paragraph, remarks(plan, rows))],
        "Curves": [
            markup.paragraph("Mean over seeds, and the span of the seeds as a band."),
            markup.picture(
                lambda narrow: draw_curves(plan, records, "", narrow=narrow), "Validation loss by training tokens"
            ),
        ],
        "Seeds": [markup.table(by_seed)],
        "Learning rates": [markup.paragraph("Validation loss of the first seed."), markup.table(tried)],
        "Runs": [markup.table(runs)],
    }
    words = f"{len(records)} rows, {len(plan.seeds)} seeds each; every row is compared with the first"
    best = min(records, key=_mean)
    tiles = {"least validation loss": f"{_mean(best):.4f}", "of": best["row"]}
    body = [markup.header(title, words, list(sections), tiles)]
    body += [markup.section(name, *parts) for name, parts in sections.items()]
    return markup.page(title, "\n".join(body))


def planned(plan: Plan) -> list[Row]:
    """What each run of the study that can be named now will be: settings, size, tokens and folder.

    Raises:
        ConfigError: a configuration that contradicts itself, or data whose vocabulary is not available.
    """
    from train.loop.resolve import resolve

    due, rows = plan.due(), []
    for row in plan.rows:
        config = resolve(plan.config(row.label))
        per_step = config.data.batch_size * config.data.seq_len
        steps = config.train.steps
        for job in plan.tried(row.label) + [job for job in due if job.row == row.label and job.seed != plan.seeds[0]]:
            rows.append(
                {
                    "run": str(job.folder(Path())),  # names its row, rate and seed
                    "steps": steps or f"{config.train.epochs} epochs",
                    "tokens": steps * per_step or None,
                    "parameters": parameter_count(config.model),
                    "without embeddings": without_embeddings(config.model),
                    "state": "to do" if plan.summary(job) is None else "finished",
                }
            )
    return rows
