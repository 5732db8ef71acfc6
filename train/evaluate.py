"""Scores of runs on a whole split, for text loss, perplexity and bits per byte: ``python -m train.evaluate RUN``."""

import dataclasses
import json
from typing import Annotated, Literal

import tyro

from mhc_jax.config import ConfigError
from train.data.config import CorpusConfig
from train.data.kind import DataConfig
from train.measure.scores import evaluate_split
from train.storage.restore import load_run
from train.terminal import cli
from train.terminal.table import terminal

PROG = "python -m train.evaluate"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Score runs on a whole split, one row per run: loss, perplexity and, for text, bits per byte.

    Attributes:
        runs: run directories or exported folders.
        split: split of the data.
        which: checkpoint of each run directory.
        json: whether to print one JSON object per line instead of a table.
        data: data to score on; by default that of each run.
    """

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    split: Literal["validation", "test"] = "validation"
    which: Literal["best", "last"] = "best"
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    data: DataConfig = CorpusConfig()


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog=PROG)
    if not flags.runs:
        raise ConfigError(f"give at least one run directory or exported folder: {PROG} RUN RUN ...")
    rows = []
    for run in flags.runs:
        rows.append({"run": run, "split": flags.split, **_scores(run, flags, argv)})
        if flags.json:
            print(json.dumps(rows[-1]), flush=True)
    if not flags.json:
        print(terminal(rows))


def _scores(run: str, flags: Flags, argv: list[str]) -> dict[str, float]:
    config, params = load_run(run, flags.which)
    data = cli.parse(Flags, argv, prog=PROG, default=Flags((run,), data=config.data)).data
    config = config.replace(data=data)
    config.validate()
    try:
        opened = data.load((flags.split,))
        opened.check(config.model.vocab_size)
        return evaluate_split(config, params, opened, flags.split)
    except ConfigError as error:  # of several runs, this one
        raise ConfigError(f"{run}: {error}") from None


if __name__ == "__main__":
    cli.run(main)
