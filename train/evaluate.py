"""Scores of runs, on a split of their data or on tasks of the lm-eval harness: ``python -m train.evaluate RUN``."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mhc_jax.config import Config, ConfigError
from train.data.config import CorpusConfig
from train.data.kind import DataConfig
from train.measure.scores import evaluate_split
from train.measure.task_data import LocalData
from train.measure.versions import versions
from train.storage.outputs import check_file
from train.storage.restore import load_run
from train.terminal import cli
from train.terminal.table import terminal

PROG = "python -m train.evaluate"
TASKS = "--tasks"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Score runs on a whole split, one row per run: loss, perplexity and, for text, bits per byte.

    With --tasks, score them on tasks of the lm-eval harness instead; --tasks --help shows the flags of that.

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


@dataclasses.dataclass(frozen=True)
class TaskFlags(Config):
    """Score runs on tasks of the lm-eval harness, with its prompts, examples, filters and metrics.

    Attributes:
        runs: run directories or exported folders.
        tasks: names of tasks, or of groups of them, separated by commas: mmlu,bbh_cot_fewshot,gsm8k_cot,wikitext.
        data: folder with the files of the tasks, see docs/evaluation.md; without it they come from the Hub.
        limit: largest number of documents of each task; 0 for all.
        shots: examples before each question; as many as the task says if not given.
        batch: number of texts that are computed at once.
        max_gen_toks: largest number of new tokens of an answer; 0 for as many as the task says.
        samples: file that receives every prompt and answer, one JSON object per line.
        which: checkpoint of each run directory.
        json: whether to print one JSON object per run instead of a table.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    tasks: str
    data: str = ""
    limit: int = 0
    shots: int | None = None
    batch: int = 8
    max_gen_toks: int = 0
    samples: str = ""
    which: Literal["best", "last"] = "best"
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False

    def validate(self):
        super().validate()
        self.require_counts(1, "batch")
        self.require_counts(0, "limit", "max_gen_toks")
        self.require(self.shots is None or self.shots >= 0, f"shots must not be negative, got {self.shots}")
        self.require(all(self.names), f"tasks must be names separated by commas, got {self.tasks!r}")

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.tasks.split(",")]


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags` and :class:`TaskFlags`."""
    if any(word.partition("=")[0] == TASKS for word in argv):
        _score_tasks(argv)
    else:
        _score_split(argv)


def _score_split(argv: list[str]) -> None:
    flags = cli.parse(Flags, argv, prog=PROG)
    _check_runs(flags.runs)
    rows = []
    for run in flags.runs:
        rows.append({"run": run, "split": flags.split, **_scores(run, flags, argv)})
        if flags.json:
            print(json.dumps(rows[-1]), flush=True)
    if not flags.json:
        print(terminal(rows))


def _check_runs(runs: tuple[str, ...]) -> None:
    if not runs:
        raise ConfigError(f"give at least one run directory or exported folder: {PROG} RUN RUN ...")


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


def _score_tasks(argv: list[str]) -> None:
    """All that can be wrong is found first: data before models, and every model before the first is computed."""
    flags = cli.parse(TaskFlags, argv, prog=PROG)
    flags.validate()
    _check_runs(flags.runs)
    samples = check_file("--samples", flags.samples) if flags.samples else None
    data = LocalData(Path(flags.data)) if flags.data else None
    harness = _harness()
    loaded = harness.load_tasks(flags.names, data, flags.shots, flags.max_gen_toks)
    models = {run: load_run(run, flags.which) for run in flags.runs}
    for config, _ in models.values():
        config.model.check_next_token()
        harness.check_room(loaded, config.model.max_len)
        config.data.tokenizer_of_text()
    if samples:
        samples.parent.mkdir(parents=True, exist_ok=True)
        samples.write_text("", encoding="utf-8")
    for run, (config, params) in models.items():
        tokenizer = config.data.tokenizer_of_text()
        lm = harness.HarnessLM(config.model, params, tokenizer, flags.batch)
        results = harness.evaluate(lm, loaded, flags.limit)
        if samples:
            with samples.open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(line, default=str)}\n" for line in _samples(run, results))
        about = {
            "run": run,
            "model": config.model.to_dict(),
            "tokenizer": tokenizer.name,
            "tokenizer_sha256": tokenizer.fingerprint,
            "versions": versions() | {"lm-eval": importlib.metadata.version("lm-eval")},
            "flags": flags.to_dict(),
            "results": harness.rows(results, lm),
        }
        print(json.dumps(about) if flags.json else _table(about, config.model.description), flush=True)


def _table(about: dict[str, Any], description: tuple[str, ...]) -> str:
    heading = f"{about['run']}: {', '.join(description)}; tokenizer {about['tokenizer']}"
    return f"{heading}\n{terminal(about['results'])}"


def _harness() -> Any:
    """The module over the harness, which is loaded without bars of its own, and without processes beside JAX's threads.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("--tasks needs the lm-eval harness: pip install 'lm-eval>=0.4.13'")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    from train.measure import harness

    return harness


def _samples(run: str, results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, found in results["samples"].items():
        for sample in found:
            yield {"run": run, "task": name, **sample}


if __name__ == "__main__":
    cli.run(main)
