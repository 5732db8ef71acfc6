"""Checks that a model keeps what it promises: ``python -m train.validate NAME``. Exit status 1 if one fails."""

import collections
import dataclasses
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mhc_jax.config import ConfigError
from mhc_jax.functional import Params, parameter_count
from mhc_jax.registry import did_you_mean, listed, shown
from train.checks import decoding, forward, learning, mirror, mixing, storage
from train.checks.finding import Finding
from train.checks.subject import Subject, small
from train.config import RunConfig
from train.data.files import replacing
from train.devices.memory import TRAINING, check_memory
from train.loop import named
from train.loop.resolve import resolve
from train.storage.outputs import check_file
from train.storage.restore import load_run
from train.terminal import cli
from train.terminal.console import task
from train.terminal.flags import ELSEWHERE
from train.terminal.table import terminal

# Of a configuration that takes its data's, where no data are read.
VOCABULARY = 61

CHECKS: Sequence[Callable[[Subject], list[Finding]]] = (
    forward.logits,
    forward.first_loss,
    forward.causality,
    learning.gradients,
    learning.steps,
    mixing.mixing,
    storage.saved,
    decoding.decoding,
    mirror.mirror,
)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Check a model on made-up tokens: forward and backward pass, steps, mixing matrices, saving, decoding, mirror.

    Attributes:
        name: name of a configuration; of a family of them, as rlm, whose forms are checked one after another; run
            directory; or exported folder.
        full: whether to check it as it is, with the parameters of a run; otherwise a model of the same parts is
            checked at width 8, with few layers and token ids.
        which: checkpoint of a run directory.
        json: file of the findings; empty for none.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    full: bool = False
    which: Literal["best", "last"] = "best"
    json: str = ""


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.validate")
    if flags.json:
        check_file("--json", flags.json)
    findings: list[tuple[str, Finding]] = []
    for index, (name, config, params) in enumerate(_subjects(flags)):
        if index == 0 and not flags.full:
            print("The parts are checked at width 8; --full checks a model at its own size.\n")
        about = f"{name}: {', '.join(config.model.description)}"
        print("\n" * (index > 0) + textwrap.fill(about, 80, subsequent_indent="  "), flush=True)
        with task("compiling and checking the model"):
            found = validate(Subject.of(config, params, quick=not flags.full))
        findings += [(name, finding) for finding in found]
        print(terminal([_row(finding) for finding in found]))
        for finding in found:
            if finding.detail and finding.ok is not True:
                print(f"{finding.check}: {finding.detail}")
    if flags.json:
        with replacing(Path(flags.json).expanduser()) as file:
            rows = [{"name": name, **dataclasses.asdict(finding)} for name, finding in findings]
            file.write(json.dumps(rows, indent=2).encode() + b"\n")
    count = collections.Counter(finding.ok for _, finding in findings)
    print(f"\n{count[True]} passed, {count[False]} failed, {count[None]} not checked")
    if count[False]:
        sys.exit(1)


def _subjects(flags: Flags) -> Iterator[tuple[str, RunConfig, Params | None]]:
    """Name, run, and trained parameters, if any, of each model to check."""
    if Path(flags.name).is_dir():
        config, params = load_run(flags.name, flags.which)
        yield (flags.name, config, params) if flags.full else (flags.name, _small(config), None)
    elif flags.name.partition("@")[0] in named.names():
        config = named.load(flags.name)
        yield flags.name, _whole(config) if flags.full else _small(config), None
    elif not (members := _family(flags.name)):
        raise ConfigError(_unknown(flags.name))
    elif flags.full:
        raise ConfigError(f"--full checks one configuration; of {flags.name} there are {listed(members)}")
    else:
        yield from ((name, config, None) for name, config in members.items())


def _family(name: str) -> dict[str, RunConfig]:
    """Configurations whose names begin with this one, at their sizes for checks, of equal ones the smallest."""
    members = {other: named.load(other) for other in named.names() if other.startswith(f"{name}_")}
    by_size = sorted(members, key=lambda other: parameter_count(members[other].sized(VOCABULARY).model))
    small = {_small(members[other]).model: other for other in reversed(by_size)}
    return {other: _small(members[other]) for other in by_size if other in small.values()}


def _unknown(name: str) -> str:
    if "/" in name:
        return f"{name}: no such folder; give a run directory, an exported folder or the name of a configuration"
    parts = [other.split("_") for other in named.names()]
    families = {"_".join(words[:count]) for words in parts for count in range(1, len(words) + 1)}
    return (
        f"unknown configuration {shown(name)}{did_you_mean(name, families)}; python -m train lists them all{ELSEWHERE}"
    )


def _small(config: RunConfig) -> RunConfig:
    return config.replace(model=small(config.sized(VOCABULARY).model))


def _whole(config: RunConfig) -> RunConfig:
    config = resolve(config)
    check_memory(config.model, TRAINING)
    return config


def validate(subject: Subject) -> list[Finding]:
    """All checks of a model; one that a part does not let run to its end has failed."""
    return [finding for check in CHECKS for finding in _findings(check, subject)]


def _findings(check: Callable[[Subject], list[Finding]], subject: Subject) -> list[Finding]:
    try:
        return check(subject)
    except ConfigError as error:
        return [Finding(check.__name__.replace("_", " "), "stopped", "runs to its end", False, str(error))]


def _row(finding: Finding) -> dict[str, str]:
    return {"check": finding.check, "found": finding.found, "bound": finding.bound, "": finding.verdict}


if __name__ == "__main__":
    cli.run(main)
