"""A student that learns from a trained teacher: ``python -m train.distill TEACHER STUDENT [--flags]``.

TEACHER is a run, an exported folder or a local folder of Hugging Face transformers, STUDENT the name of a
configuration; every flag of ``python -m train`` counts. In the end teacher, student and, with ``--baseline``, the same
student without a teacher are scored on the same validation data: as a table, and as ``distillation.json`` in the run.
Exit statuses are those of ``python -m train``.
"""

import dataclasses
import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from train.__main__ import COMMON, Launch, entry, help_text, launched, run_to_end, typed_before
from train.config import RunConfig
from train.data.files import replacing
from train.data.kind import Data
from train.devices import peers
from train.devices.launch import use_compile_cache
from train.loop import named
from train.loop.resolve import run_folder
from train.objectives.distillation import DistillationConfig
from train.objectives.kind import TeacherConfig
from train.storage.folder import CONFIG_FILE, DISTILLATION_FILE
from train.storage.outputs import json_text
from train.terminal import cli, interrupt
from train.terminal.console import say
from train.terminal.table import terminal

PROG = "python -m train.distill"
WORDS = {
    "TEACHER": "run directory, exported folder or Hugging Face folder",
    "STUDENT": "name of a configuration; python -m train lists them",
}
BASELINE = ("--baseline", "train the same student without the teacher, too")
OWN = {
    "--objective.temperature": "divisor of the logits of both in the divergence",
    "--objective.kl": "weight of the divergence from the teacher's distribution",
    "--objective.hidden": "weight of the distance from the teacher's hidden states",
    "--objective.cross-entropy": "weight of the cross-entropy with the data",
    "--objective.layers": "pairs STUDENT:TEACHER of layers that are compared, from 0; all if empty",
    "--objective.hidden-until": "share of training after which hidden states no longer count",
    "--objective.kl-from": "share of training from which the divergence counts",
    "--objective.cross-entropy-from": "share of training from which the cross-entropy counts",
}
TITLES = {"loss": "loss", "ppl": "ppl", "bpb": "bits per byte", "error": "error"}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Train a student to predict as a teacher does, and score both.

    Attributes:
        teacher: run directory, exported folder or Hugging Face folder.
        student: name of a configuration.
        baseline: whether to train the same student without the teacher, too, with the same seed on the same tokens, in
            the folder ``baseline`` of the run.
    """

    teacher: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEACHER")]
    student: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDENT")]
    baseline: bool = False
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`.

    Raises:
        ConfigError: bad input.
    """
    launched(Launch, argv, _command)


def _command(argv: list[str], _: Launch, rest: list[str]) -> None:
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))[:2]
    if cli.HELP & {*rest}:
        print(_help(words))
        return
    for (name, what), word in itertools.zip_longest(WORDS.items(), words):
        if word is None:
            raise ConfigError(f"{name} is missing: {what}; {PROG} TEACHER STUDENT [--flags]")
    teacher, student = words
    flags = cli.parse(
        Flags,
        ["--help" if word == "--help-all" else word for word in rest],
        prog=PROG,
        default=Flags(teacher, student, run=_initial(teacher, student)),
        markers=(tyro.conf.AvoidSubcommands,),
    )
    config = flags.run
    if config.objective.teacher is None:
        raise ConfigError(f"--objective {config.objective.kind} has no teacher; leave it out")
    if config.objective.teacher.path != teacher:
        raise ConfigError(f"--objective.teacher.path is given by TEACHER, {teacher}; leave the flag out")
    use_compile_cache()
    resume = [] if config.train.resume else ["--train.resume"]
    resume_command = shlex.join([*typed_before(argv), *argv, *resume])
    peers.resume_with(resume_command)
    run_to_end(config, resume_command)
    if flags.baseline:
        run_to_end(baseline(config), resume_command)
    with interrupt.advising(f"interrupted: what was trained is saved; score it with: {resume_command}"):
        say(_scored(run_folder(config), teacher))


def _help(words: list[str]) -> str:
    config = _initial(*words) if len(words) == 2 else RunConfig(objective=DistillationConfig())
    lines = [entry(name, what) for name, what in (*WORDS.items(), BASELINE)]
    prog = " ".join([PROG, *(words if len(words) == 2 else WORDS)])
    head, _, rest = help_text(prog, config, OWN | COMMON).partition("\n\n")
    return "\n".join([head, "", *lines, rest])


def _initial(teacher: str, student: str) -> RunConfig:
    """The configuration of that name with the teacher."""
    config = named.load(student)
    objective = config.objective
    if not isinstance(objective, DistillationConfig):
        objective = DistillationConfig(chunk=objective.chunk, errors=getattr(objective, "errors", False))
    objective = objective.replace(teacher=TeacherConfig(teacher))
    return config.replace(objective=objective, run_dir=config.run_dir or str(Path("runs", f"{student}-distilled")))


def baseline(config: RunConfig) -> RunConfig:
    """The run of the same student without its teacher, inside that run's folder; it goes on where it was stopped."""
    folder = run_folder(config) / "baseline"
    begun = config.train.resume and (folder / CONFIG_FILE).is_file()
    return config.replace(
        run_dir=str(folder),
        objective=config.objective.without_teacher(),
        train=config.train.replace(resume=begun),
    )


def _scored(folder: Path, path: str) -> str:
    """The scores of all models as a table, and where they are written. All processes of a run read the checkpoints.

    Args:
        path: of the teacher, which may have moved since the run recorded it.
    """
    from train.storage.restore import load_run

    config, params = load_run(folder)
    teacher = config.objective.teacher
    assert teacher is not None  # its run has recorded it
    data = config.data.load(("validation",))
    models: dict[str, tuple[RunConfig, Params]] = {
        "teacher": (config.replace(model=teacher.known), load_run(Path(path).expanduser())[1]),
        "distilled": (config, params),
    }
    if (folder / "baseline" / CONFIG_FILE).is_file():
        models["from scratch"] = load_run(folder / "baseline")
    rows = {name: _scores(*found, data) for name, found in models.items()}
    record = {"teacher": path, "digest": teacher.digest, "length": config.data.seq_len, "models": rows}
    if jax.process_index() == 0:
        with replacing(folder / DISTILLATION_FILE) as file:
            file.write(json_text(record).encode())
    return f"{terminal([*_table(rows)])}\nwritten to {folder / DISTILLATION_FILE}"


def _scores(run: RunConfig, params: Params, data: Data) -> dict[str, Any]:
    """Scores on the validation split, and sizes: parameters, and bytes of decoding state for a sequence of the data."""
    from train.measure.scores import evaluate_split

    found = evaluate_split(run, params, data)
    size = mhc_jax.summary(run.model.replace(max_len=run.data.seq_len))
    parameters = mhc_jax.summary(run.model).parameters
    return found | {"parameters": parameters, "state_bytes": size.cache_bytes}


def _table(rows: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for name, row in rows.items():
        scores = {title: row[key] for key, title in TITLES.items() if key in row}
        yield {"model": name, **scores, "parameters": row["parameters"], "state, bytes": row["state_bytes"]}


if __name__ == "__main__":
    with peers.leaving():
        cli.run(main)
