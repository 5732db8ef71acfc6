"""Scores of a model on tasks over long contexts, alone and in the scaffold: ``python -m train.rlm_bench``."""

import dataclasses
import itertools
import json
import math
import statistics
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from mhc_jax.config import Config, ConfigError
from mhc_jax.registry import unknown
from mhc_jax.rlm import Limits, environments, tasks
from mhc_jax.rlm.adapters import from_generate
from mhc_jax.rlm.models import Model
from mhc_jax.rlm.tasks import Task, scripted
from train.measure.answers import TOO_LONG, Answered, Mode, alone, answered, scaffolded
from train.storage.outputs import check_file
from train.storage.restore import load_run
from train.terminal import cli
from train.terminal.console import task as announced
from train.terminal.table import terminal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES: tuple[Mode, ...] = get_args(Mode)
# Panels of the picture in a row.
COLUMNS = 4

# The model alone, and in the scaffold, for a task.
Models = Callable[[Task], tuple[Model, Model]]


@dataclasses.dataclass(frozen=True)
class Flags(Config):
    """Score a model on questions about long contexts, by length, alone and in the scaffold.

    Attributes:
        run: run directory or exported folder of the model; if empty, a scripted model is asked, which in the scaffold
            solves each task by code and alone reads the first 16000 characters without a mistake.
        tasks: kinds to generate; all if none is named.
        lengths: characters of the contexts.
        examples: tasks of each kind and length.
        seed: of the first example; each further one takes the next.
        data: file or folder of JSON lines (OOLONG, LongBench, or context, question and answer) in place of the tasks.
        source: folder of Python files that the task ``code`` asks about; this library if empty.
        environment: that code runs in.
        limits: of each completion in the scaffold.
        tokens: largest number of new tokens of a reply of the run.
        which: checkpoint of a run directory.
        json: whether to print one JSON object for each answer instead of a table.
        picture: PNG file for the scores by length; empty for none.
    """

    run: str = ""
    tasks: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (4_000, 32_000, 256_000)
    examples: int = 3
    seed: int = 0
    data: str = ""
    source: str = ""
    environment: Literal["monty", "monty+bwrap", "bwrap"] = "monty"
    limits: Limits = Limits()
    tokens: int = 256
    which: Literal["best", "last"] = "best"
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    picture: str = ""

    def validate(self):
        super().validate()
        self.require_counts(1, "examples", "tokens")
        for kind in self.tasks:
            self.require(kind in tasks.KINDS, f"tasks: {unknown('task', kind, tasks.KINDS)}")
        self.require(self.lengths and min(self.lengths) > 0, "lengths must be numbers of characters from 1 on")
        self.require(not (self.data and self.tasks), "data and --tasks exclude each other")
        self.require(not self.data or bool(self.run), "data cannot be asked of the scripted model; give --run RUN")


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.rlm_bench", default=Flags())
    flags.validate()
    picture = check_file("--picture", flags.picture) if flags.picture else None
    trial = environments.make(flags.environment, flags.limits)
    trial.start({}, {})
    trial.close()
    asked = [*_read(flags)] if flags.data else [*_generated(flags)]
    models = _models(flags)
    found = []
    with announced("asking", len(asked)) as progress:
        for length, seed, task in progress.over(asked):
            for mode, answer in zip(MODES, _answers(task, models, flags), strict=True):
                found.append(answered(task, length, seed, mode, answer))
                if flags.json:
                    print(json.dumps(dataclasses.asdict(found[-1])), flush=True)
    if picture:
        from train.report import figures

        figures.save_png(lambda: draw(found), picture)
    if not flags.json:
        print(terminal(rows(found)), *unasked(found), *([f"Scores drawn in {picture}"] if picture else []), sep="\n\n")


def rows(found: Sequence[Answered]) -> list[dict[str, Any]]:
    """A row for each task and length, then for all tasks: mean scores, and means of what the scaffold took.

    A score is None where no prompt fitted the model, which was then not asked at all.
    """
    named = [*dict.fromkeys(one.task for one in found)]
    groups = [(name, [one for one in found if one.task == name]) for name in named]
    groups += [("all", found)] if len(named) > 1 else []
    return [
        _row(name, length, [one for one in group if one.length == length])
        for name, group in groups
        for length in sorted({one.length for one in group})
    ]


def _row(name: str, length: int, group: Sequence[Answered]) -> dict[str, Any]:
    inside = [one for one in group if one.mode == "scaffold"]
    return {
        "task": name,
        "length": length,
        **{mode: _score([one for one in group if one.mode == mode]) for mode in MODES},
        "answered": statistics.fmean(one.status == "answered" for one in inside),
        "calls": round(statistics.fmean(one.calls for one in inside), 1),
        "tokens": round(statistics.fmean(one.tokens for one in inside)),
        "s": round(statistics.fmean(one.seconds for one in inside), 2),
    }


def _score(group: Sequence[Answered]) -> float | None:
    asked = any(one.status != TOO_LONG for one in group)
    return round(statistics.fmean(one.score for one in group), 2) if asked else None


def unasked(found: Sequence[Answered]) -> Iterator[str]:
    """A line for each mode in which prompts were too long for the model."""
    for mode in MODES:
        group = [one for one in found if one.mode == mode]
        if count := sum(one.status == TOO_LONG for one in group):
            yield textwrap.fill(
                f"{mode}: {count} of {len(group)} prompts did not fit into the model's window; nothing was asked, and "
                "they count as 0. A model with a larger max_len, or fewer --tokens, leaves them more room.",
                80,
            )


def draw(found: Sequence[Answered]) -> "Figure":
    """Mean score by length, a panel for each task, the model alone and in the scaffold."""
    from train.report import figures

    table = rows(found)
    named = [*dict.fromkeys(row["task"] for row in table)]
    lines = -(-len(named) // COLUMNS)
    figure = figures.new_figure(2.4 * min(COLUMNS, len(named)) + 0.8, 2.1 * lines + 0.8)
    grid = figure.subplots(lines, min(COLUMNS, len(named)), sharex=True, sharey=True, squeeze=False).flat
    for axes in grid[len(named) :]:
        axes.set_axis_off()
    for place, (axes, name) in enumerate(zip(grid, named)):
        group = [row for row in table if row["task"] == name]
        for colour, style, mode in zip(figures.COLOURS, ("--", "-"), MODES):
            lengths, scores = zip(*((row["length"], row[mode]) for row in group))
            scores = [math.nan if score is None else score for score in scores]
            axes.plot(lengths, scores, color=colour, linestyle=style, marker="o", markersize=4, label=mode)
        axes.set(title=name, xscale="log", ylim=(-0.05, 1.05))
        axes.tick_params(labelbottom=place + COLUMNS >= len(named))
        axes.xaxis.set_major_formatter(figures.COUNTS)
    figure.supxlabel("characters of the context")
    figure.supylabel("score")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(MODES))
    return figure


def _generated(flags: Flags) -> Iterator[tuple[int, int, Task]]:
    seeds = range(flags.seed, flags.seed + flags.examples)
    source = Path(flags.source) if flags.source else None
    for kind, length, seed in itertools.product(flags.tasks or tasks.KINDS, flags.lengths, seeds):
        yield length, seed, tasks.generate(kind, length, seed, source)


def _read(flags: Flags) -> Iterator[tuple[int, int, Task]]:
    """The tasks of a data set, with their lengths rounded to powers of two."""
    for number, task in enumerate(tasks.read(Path(flags.data), flags.examples)):
        yield 2 ** round(math.log2(max(1, len(task.context)))), number, task


def _models(flags: Flags) -> Models:
    if not flags.run:
        return lambda task: (scripted.Reader(task), scripted.Oracle(task))
    config, params = load_run(flags.run, flags.which)
    if flags.tokens >= config.model.max_len:
        raise ConfigError(
            f"--tokens {flags.tokens} leaves no room for a prompt in the {config.model.max_len} tokens of the model"
        )
    model = from_generate(config.model, params, config.data.tokenizer_of_text(), max_new_tokens=flags.tokens)
    return lambda task: (model, model)


def _answers(task: Task, models: Models, flags: Flags) -> Iterator[Callable[[], tuple]]:
    """In the order of :data:`MODES`."""
    by_itself, inside = models(task)
    yield lambda: alone(by_itself, task)
    yield lambda: scaffolded(inside, task, flags.environment, flags.limits)


if __name__ == "__main__":
    cli.run(main)
