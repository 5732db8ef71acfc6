"""Errors on words of a group by their length: ``python -m train.state_tracking NAME [NAME ...]``.

Every NAME is a configuration, which is trained in a folder of that name, or a finished run. All are then asked for the
products of the same fresh words, longer than those that they were trained on. Runs that exist are gone on with, so the
same command continues after an interruption. Exit statuses are those of ``python -m train``.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from mhc_jax.config import ConfigError
from mhc_jax.functional import parameter_count
from train.__main__ import run_to_end, typed_before
from train.config import RunConfig, recorded
from train.data.files import replacing
from train.data.group_words import GroupWordsConfig
from train.devices.launch import use_compile_cache
from train.loop.resolve import check_resumes, resolve, run_folder
from train.loop.typed import Typed, flags_in
from train.measure.versions import versions
from train.storage.folder import CONFIG_FILE, read_summary
from train.storage.outputs import check_folder, json_text
from train.terminal import cli, interrupt
from train.terminal.console import show_log
from train.terminal.flags import Plugins
from train.terminal.table import terminal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROG = "python -m train.state_tracking"
# Of the longest word in training: where errors are reported unless lengths are given.
SHARES = (0.5, 1, 1.5, 2, 3, 4)
ROWS = 128


@dataclasses.dataclass(frozen=True)
class Flags:
    """Train models to follow the product of a word, and count their errors on longer words.

    Attributes:
        models: names of configurations, such as words_gla or words_gla@mhc, or directories of finished runs.
        out: folder of the runs, state_tracking.json and state_tracking.png.
        lengths: lengths of words at which errors are reported; half to four times that of training if empty.
        words: fresh words that every model is asked for, rounded up to whole batches of 128.
        seed: seed of these words.
        train_flags: flags of python -m train for every configuration, as in --train-flags="--data.group s5".
        plugins: modules to import first.
    """

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME [NAME ...]")]
    out: str = "runs/state_tracking"
    lengths: tuple[int, ...] = ()
    words: int = 1024
    seed: int = 0
    train_flags: str = ""
    plugins: Plugins = ()


@dataclasses.dataclass(frozen=True)
class Scores:
    """Errors and losses of one model, (T,) by place."""

    run: RunConfig
    errors_T: np.ndarray
    losses_T: np.ndarray

    @property
    def error_rates_T(self) -> np.ndarray:
        """The shares of wrong answers in words of each length."""
        return _mean_so_far(self.errors_T)

    def record(self, lengths: Sequence[int]) -> dict[str, Any]:
        """What ``state_tracking.json`` holds of the model."""
        at = np.array(lengths) - 1
        return {
            "run": str(run_folder(self.run)),
            "parameters": parameter_count(self.run.model),
            "steps": (read_summary(run_folder(self.run)) or {}).get("steps"),
            "trained_length": self.run.data.seq_len,
            "lengths": [*lengths],
            "error_rates": self.error_rates_T[at].tolist(),
            "last_errors": self.errors_T[at].tolist(),
            "losses": _mean_so_far(self.losses_T)[at].tolist(),
        }


def _mean_so_far(x_T: np.ndarray) -> np.ndarray:
    return np.cumsum(x_T) / (1 + np.arange(len(x_T)))


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`.

    Raises:
        ConfigError: bad input, before anything is trained.
    """
    flags = cli.parse(Flags, argv, prog=PROG)
    show_log("train")
    for plugin in flags.plugins:
        cli.load_plugin(plugin)
    out = check_folder("--out", flags.out)
    runs = _runs(flags, out)
    lengths = _lengths(flags, runs)
    runs = {name: _sized(run, max(lengths)) for name, run in runs.items()}
    use_compile_cache()
    again = shlex.join([*typed_before(argv), *argv])
    for run in runs.values():
        if not _finished(run):
            run_to_end(run, again)
    with interrupt.advising(f"interrupted: what was trained is saved; score it with: {again}"):
        scores = {name: _scores(run, max(lengths), flags) for name, run in runs.items()}
        task = _task(next(iter(runs.values())))
        records = {name: found.record(lengths) for name, found in scores.items()}
        words = {"words": ROWS * _batches(flags), "seed": flags.seed, "chance": task.chance}
        told = {"group": task.group, "generators": task.generators, **words, "versions": versions(), "models": records}
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / "state_tracking.json") as file:
            file.write(json_text(told).encode())
        from train.report import figures

        figures.save_png(lambda: draw(scores, lengths), out / "state_tracking.png")
    print(
        f"Share of wrong answers in {task.label}, by the length of the word",
        terminal(table(records, "error_rates", task.chance)),
        "The same at the last place alone",
        terminal(table(records, "last_errors", task.chance)),
        f"Drawn in {out / 'state_tracking.png'}",
        sep="\n\n",
    )


def _runs(flags: Flags, out: Path) -> dict[str, RunConfig]:
    """The runs by the names that were given, their sizes still open where they are to be trained.

    Raises:
        ConfigError: no name, an unknown or repeated one, flags that do not fit, or different tasks.
    """
    if not flags.models:
        raise ConfigError(f"NAME is missing: a configuration such as words_gla, or a finished run; {PROG} NAME")
    if len({*flags.models}) < len(flags.models):
        raise ConfigError(f"a name stands twice among {', '.join(flags.models)}")
    runs = {name: _run(name, flags, out) for name in flags.models}
    first, *others = runs
    for name in others:
        if _task(runs[name]).label != _task(runs[first]).label:
            raise ConfigError(
                f"{name} is of {_task(runs[name]).label}, {first} of {_task(runs[first]).label}; give runs of one task"
            )
    return runs


def _run(name: str, flags: Flags, out: Path) -> RunConfig:
    given = Path(name).expanduser()
    if (given / CONFIG_FILE).is_file():
        run = recorded(given / CONFIG_FILE).replace(run_dir=str(given))
        if not _finished(run):
            raise ConfigError(f"{given} has not finished; continue it with python -m train --resume {given}")
    elif given.is_dir():
        raise ConfigError(f"{given} holds no run; give a finished run, or the name of a configuration")
    else:
        run = Typed(name, name).load(flags_in(flags.train_flags))
        folder = out / name
        begun = (folder / CONFIG_FILE).is_file()
        run = run.replace(run_dir=str(folder), train=run.train.replace(resume=begun))
        _check_curriculum(name, run)
    if not isinstance(run.data, GroupWordsConfig):
        raise ConfigError(f"{name} is trained on {run.data.label}, not on words of a group; see docs/state_tracking.md")
    return run


def _task(run: RunConfig) -> GroupWordsConfig:
    assert isinstance(run.data, GroupWordsConfig)  # see _run
    return run.data


def _check_curriculum(name: str, run: RunConfig) -> None:
    run.data.validate()
    last = run.data.last_stage if isinstance(run.data, GroupWordsConfig) else 0
    if 0 < run.train.steps <= last:
        raise ConfigError(
            f"{name}: words reach {run.data.seq_len} actions at step {last + 1:,}, and training ends at step "
            f"{run.train.steps:,}; give more --train.steps, or shorter --data.stage-steps, in --train-flags"
        )


def _lengths(flags: Flags, runs: Mapping[str, RunConfig]) -> list[int]:
    for name, values, least in (
        ("lengths", flags.lengths, 1),
        ("words", (flags.words,), 1),
        ("seed", (flags.seed,), 0),
    ):
        if low := [value for value in values if value < least]:
            raise ConfigError(f"--{name} must be at least {least}, got {low[0]}")
    longest = max(run.data.seq_len for run in runs.values())
    return sorted({*flags.lengths} or {max(round(share * longest), 1) for share in SHARES})


def _sized(run: RunConfig, length: int) -> RunConfig:
    """The run with its sizes known: learned positions for the longest word, if it is still to be trained.

    Raises:
        ConfigError: it contradicts itself, is another run than the one in its folder, or has too few positions.
    """
    from train.measure.places import keeps_parameters

    open_length = run.model.max_len is None
    run = resolve(run)
    if not keeps_parameters(run.model, length):
        if not open_length:
            raise ConfigError(
                f"{run.name} has positions for {run.model.max_len} tokens and none for {length}; give shorter "
                "--lengths, or train a model with more: --model.max-len"
            )
        run = run.replace(model=run.model.replace(max_len=length))
    if run.train.resume:
        check_resumes(run)
    return run


def _finished(run: RunConfig) -> bool:
    """Whether there is nothing left to train."""
    summary = read_summary(run_folder(run)) or {}
    return "steps" in summary and summary["steps"] >= run.train.steps


def _batches(flags: Flags) -> int:
    return -(-flags.words // ROWS)


def _scores(run: RunConfig, length: int, flags: Flags) -> Scores:
    from train.measure.places import by_place
    from train.storage.restore import load_run

    trained, params = load_run(run_folder(run))
    trained = trained.replace(run_dir=str(run_folder(run)))
    fresh = trained.data.replace(batch_size=ROWS, eval_count=_batches(flags), seed=flags.seed)
    errors_T, losses_T = by_place(trained.replace(data=fresh), params, length)
    return Scores(trained, errors_T, losses_T)


def table(records: Mapping[str, Mapping[str, Any]], key: str, chance: float) -> list[dict[str, Any]]:
    """A row for each model, and one for a guess; columns are lengths."""
    lengths = next(iter(records.values()))["lengths"]
    rows = [
        {"model": name} | {str(length): round(x, 3) for length, x in zip(lengths, record[key])}
        for name, record in records.items()
    ]
    return [*rows, {"model": "a guess"} | {str(length): round(chance, 3) for length in lengths}]


def draw(scores: Mapping[str, Scores], lengths: Sequence[int]) -> "Figure":
    """Errors by length, a line for each model, with those of a guess and the longest words of training."""
    from train.report import figures

    figure = figures.new_figure(8, 4.5)
    axes = figure.subplots()
    for index, (name, found) in enumerate(scores.items()):
        rates, style = found.error_rates_T, figures.STYLES[index // 10 % len(figures.STYLES)]["linestyle"]
        axes.plot(1 + np.arange(len(rates)), rates, color=f"C{index % 10}", linestyle=style, label=name)
        axes.plot(lengths, rates[np.array(lengths) - 1], color=f"C{index % 10}", linestyle="", marker="o", markersize=4)
    task = _task(next(iter(scores.values())).run)
    axes.axhline(task.chance, color="0.5", linestyle="--", label="a guess")
    for length in {found.run.data.seq_len for found in scores.values()}:
        axes.axvline(length, color="0.5", linestyle=":")
    axes.set(xlabel="length of the word (dotted: the longest in training)", ylabel="share of wrong answers")
    axes.set(title=f"Errors in {task.label}", ylim=(-0.02, 1.02))
    axes.legend()
    return figure


if __name__ == "__main__":
    cli.run(main)
