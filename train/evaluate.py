"""Scores of runs, on a split of their data or on tasks of the lm-eval harness: ``python -m train.evaluate RUN``."""

import dataclasses
import importlib.util
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mhc_jax.config import Config, ConfigError
from train.config import RunConfig
from train.data.config import CorpusConfig
from train.data.kind import DataConfig
from train.measure.questions import ENDS, Questions
from train.measure.scores import evaluator
from train.measure.task_data import LocalData
from train.measure.tasks import Tasks
from train.measure.text_model import TextModel
from train.measure.versions import versions
from train.storage.outputs import check_file
from train.storage.restore import check_steps, load_run
from train.terminal import cli
from train.terminal.table import terminal

PROG = "python -m train.evaluate"
TASKS = "--tasks"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Score runs on a whole split, one row per run: loss, perplexity and, for text, bits per byte.

    With --steps, score the checkpoints of these steps, whose losses and perplexities stay in each run's folder as
    eval_results.json and eval_curve.png; train.compare draws them side by side.
    With --tasks, score them on benchmarks or on own questions instead; --tasks --help shows the flags of that.

    Attributes:
        runs: run directories or exported folders.
        split: split of the data.
        which: checkpoint of each run directory.
        steps: checkpoints of each run directory instead, by their steps.
        ema: the moving averages of the parameters instead, of runs with --optim.ema.
        json: whether to print one JSON object per line instead of a table.
        data: data to score on; by default that of each run.
    """

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    split: Literal["validation", "test"] = "validation"
    which: Literal["best", "last"] = "best"
    steps: tuple[int, ...] = ()
    ema: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    data: DataConfig = CorpusConfig()


@dataclasses.dataclass(frozen=True)
class TaskFlags(Config):
    """Score runs on tasks of the lm-eval harness, with its prompts, examples, filters and metrics, or on own questions.

    Attributes:
        runs: run directories or exported folders.
        tasks: names of tasks, or of groups of them, separated by commas: mmlu,bbh_cot_fewshot,gsm8k_cot,wikitext; or
            files of questions, lines of JSON with a prompt, a response and perhaps choices.
        data: folder with the files of the tasks, see docs/evaluation.md; without it they come from the Hub.
        limit: largest number of documents of each task; 0 for all.
        shots: examples before each question; as many as the task says if not given.
        batch: number of texts that are computed at once.
        max_gen_toks: largest number of new tokens of an answer; 0 for as many as the task says.
        samples: file that receives every prompt and answer, one JSON object per line.
        which: checkpoint of each run directory.
        ema: the moving averages of the parameters instead, of runs with --optim.ema.
        json: whether to print one JSON object per run instead of a table.
    """

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    tasks: str
    data: str = ""
    limit: int = 0
    shots: int | None = None
    batch: int = 8
    max_gen_toks: int = 0
    samples: str = ""
    which: Literal["best", "last"] = "best"
    ema: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
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
    for run in flags.runs if flags.steps else ():
        check_steps(run, flags.steps)
    rows = []
    for run in flags.runs:
        for row in _scores(run, flags, argv):
            rows.append(row)
            if flags.json:
                print(json.dumps(row), flush=True)
    if not flags.json:
        print(terminal(rows))


def _check_runs(runs: tuple[str, ...]) -> None:
    if not runs:
        raise ConfigError(f"give at least one run directory or exported folder: {PROG} RUN RUN ...")


def _scores(run: str, flags: Flags, argv: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each checkpoint of a run; those that were named by their steps are kept in its folder."""
    checkpoints = flags.steps or (flags.which,)
    config, params = load_run(run, checkpoints[0], ema=flags.ema)
    data = cli.parse(Flags, argv, prog=PROG, default=Flags((run,), data=config.data)).data
    asked = config.replace(data=data)
    asked.validate()
    try:
        opened = data.load((flags.split,))
        opened.check(config.model.vocab_size)
        scores = evaluator(asked, opened, flags.split)
        for index, checkpoint in enumerate(checkpoints):
            if index:
                _, params = load_run(run, checkpoint, ema=flags.ema)
            found, step = scores(params), {}
            if isinstance(checkpoint, int):
                if not flags.ema:
                    _keep(Path(run), config, data, flags.split, checkpoint, found)
                step = {"step": checkpoint}
            yield {"run": run, **step, "split": flags.split, **found}
    except ConfigError as error:  # of several runs, this one
        raise ConfigError(f"{run}: {error}") from None


def _keep(run: Path, config: RunConfig, data: DataConfig, split: str, step: int, found: dict[str, float]) -> None:
    from train.report.history import add_results

    where = {"data": data.label, "split": split, "seq_len": data.seq_len}
    add_results(run, config, [{"step": step, "val_loss": found["loss"], "val_ppl": found.get("ppl"), **where}])


def _score_tasks(argv: list[str]) -> None:
    """All that can be wrong is found first: data before models, and every model before the first is computed."""
    flags = cli.parse(TaskFlags, ["--help"] if cli.HELP & {*argv} else argv, prog=PROG)
    flags.validate()
    _check_runs(flags.runs)
    samples = check_file("--samples", flags.samples) if flags.samples else None
    tasks = _tasks(flags)
    models = {run: load_run(run, flags.which, ema=flags.ema) for run in flags.runs}
    for run, (config, _) in models.items():
        try:
            config.model.check_next_token()
            config.data.tokenizer_of_text()
            for some in tasks:
                some.check(config.model)
        except ConfigError as error:  # of several runs, this one
            raise ConfigError(f"{run}: {error}") from None
        if not config.model.causal:  # padding behind a text would reach it
            raise ConfigError(f"{run}: its tokens see later ones, so it cannot be asked")
    mode = "w"
    for run, (config, params) in models.items():
        model = TextModel(config.model, params, config.data.tokenizer_of_text(), flags.batch)
        scores, records = map(list, map(itertools.chain.from_iterable, zip(*(some.score(model) for some in tasks))))
        if samples:
            samples.parent.mkdir(parents=True, exist_ok=True)
            with samples.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps({"run": run, **record}, default=str) + "\n" for record in records)
            mode = "a"
        rows = [dataclasses.asdict(score) for score in scores]
        print(json.dumps(_about(run, model, flags, rows)) if flags.json else _table(run, model, rows), flush=True)


def _tasks(flags: TaskFlags) -> list[Tasks]:
    """Files of questions, and the tasks of the harness, if any."""
    files = [name for name in flags.names if name.endswith(ENDS)]
    names = [name for name in flags.names if name not in files]
    if not names and (flags.shots is not None or flags.data):
        raise ConfigError(
            "--shots and --data belong to tasks of the lm-eval harness; only files of questions are named"
        )
    found: list[Tasks] = [Questions(Path(name), flags.limit, flags.max_gen_toks) for name in files]
    if names:
        data = LocalData(Path(flags.data)) if flags.data else None
        found.append(_harness().HarnessTasks(names, data, flags.shots, flags.limit, flags.max_gen_toks))
    return found


def _table(run: str, model: TextModel, rows: list[dict[str, Any]]) -> str:
    return f"{run}: {', '.join(model.config.description)}; tokenizer {model.tokenizer.name}\n{terminal(rows)}"


def _about(run: str, model: TextModel, flags: TaskFlags, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "run": run,
        "model": model.config.to_dict(),
        "tokenizer": model.tokenizer.name,
        "tokenizer_sha256": model.tokenizer.fingerprint,
        "versions": versions("lm-eval"),
        "flags": flags.to_dict(),
        "results": rows,
    }


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


if __name__ == "__main__":
    cli.run(main)
