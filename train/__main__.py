"""Trains a language model: ``python -m train NAME [--flags]``, or from a file, or on from where a run has stopped.

Exit status: 0 done, 2 bad input, 3 stopped because the loss was no longer finite, 4 another process
of the run is gone, 130 or 143 stopped by SIGINT or SIGTERM, which save what was trained.
"""

import dataclasses
import itertools
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, TypeVar

import tyro

from mhc_jax import registry
from mhc_jax.config import ConfigError
from mhc_jax.registry import listed
from train.config import RunConfig
from train.devices import peers
from train.devices.launch import DistributedConfig, join, use_compile_cache
from train.loop import named
from train.loop.config_file import read_config, read_run
from train.loop.resolve import run_folder
from train.terminal import cli, interrupt
from train.terminal.console import say, show_log
from train.terminal.flags import Plugins, flags_of, parts_of

PROG = "python -m train"
USAGE = f"""usage: {PROG} NAME [--flags]            a configuration from the list
       {PROG} --config FILE [--flags]   a run's config.json, or TOML
       {PROG} --resume RUN [--flags]    continues that run"""
# Where the words of a list begin.
INDENT = 30

COMMON = {
    "--train.steps": "optimizer steps; 0 to follow --train.epochs",
    "--train.epochs": "passes over the training windows",
    "--data.source": "name of a known corpus, or path of text, JSONL or parquet",
    "--data.path": "folder with the files of a known corpus",
    "--data.tokenizer": "gpt2, bytes, chars, or a tokenizer's path or Hub name",
    "--data.seq-len": "tokens per training window",
    "--data.batch-size": "windows per step, over all devices",
    "--optim.lr": "peak learning rate",
    "--optim.warmup-steps": "steps until the peak learning rate",
    "--model.width": "width of each residual stream",
    "--model.layers": "number of blocks",
    "--model.execution.policy": "float32, bfloat16, bfloat16_wide_streams, float16 or float64",
    "--train.accumulate": "micro-batches per step",
    "--train.seed": "seed of initial parameters and dropout",
    "--run-dir": "folder of all output; runs/NAME if empty",
}


@dataclasses.dataclass(frozen=True)
class Launch:
    """Settings that are needed before a configuration can be read.

    Attributes:
        plugins: modules to import first; they may register configurations, topologies and mixers.
        distributed: the place of this process among several.
    """

    plugins: Plugins = ()
    distributed: DistributedConfig = DistributedConfig()


L = TypeVar("L", bound=Launch)


@dataclasses.dataclass(frozen=True)
class Start(Launch):
    """The source of the configuration, if it is not a name.

    Attributes:
        config: file to start from: a run's config.json, or TOML with the same fields.
        resume: run to continue; its folder holds the configuration.
    """

    config: str = ""
    resume: str = ""


@dataclasses.dataclass(frozen=True)
class Command(Launch):
    """Trains a language model; every flag changes one field of the configuration."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


def main(argv: list[str]) -> None:
    """The command; without arguments it lists the configurations.

    Raises:
        ConfigError: bad input.
    """
    launched(Start, argv, _command)


def launched(kind: type[L], argv: list[str], command: Callable[[list[str], L, list[str]], None]) -> None:
    """Calls ``command(argv, settings, other flags)`` as one process of the run, with all plugins.

    Raises:
        ConfigError: bad input.
    """
    show_log("train")
    launch, rest = cli.parse_known(kind, argv)
    # Processes find each other before anything touches a device, and even reading a configuration may.
    join(launch.distributed)
    interrupt.take_back()
    with peers.telling():
        for plugin in launch.plugins:
            cli.load_plugin(plugin)
        command(argv, launch, rest)


def _command(argv: list[str], start: Start, rest: list[str]) -> None:
    if not (start.config or start.resume or set(rest) - {"-h", "--help", "--help-all"}):
        print(f"{USAGE}\n\n{listing()}\n\nFlags of one: {PROG} NAME --help")
        return
    prog, config, flags = _start(start, rest)
    if cli.HELP & set(flags):
        print(help_text(prog, config, COMMON))
        return
    command = cli.parse(
        Command,
        ["--help" if flag == "--help-all" else flag for flag in flags],
        prog=prog,
        default=Command(start.plugins, start.distributed, config),
        markers=(tyro.conf.AvoidSubcommands,),
    )
    config = _resumed(start.resume, command.run) if start.resume else command.run
    use_compile_cache()
    resume_command = shlex.join([*typed_before(argv), *_resuming(start, config)])
    peers.resume_with(resume_command)
    run_to_end(config, resume_command)
    say(_next(argv, config, start.plugins))


def run_to_end(config: RunConfig, resume_command: str) -> None:
    """The run; ends the process with status 3 if it stops because the loss is no longer finite.

    Raises:
        ConfigError, Interrupted: see :func:`train.loop.run.run`.
    """
    # Imported late, because the trainer takes seconds to load.
    from train.loop.run import NonFiniteError, run

    try:
        with interrupt.advising("interrupted before a step was trained; the same command starts again"):
            run(config, resume_command=resume_command)
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)


def _start(start: Start, rest: list[str]) -> tuple[str, RunConfig, list[str]]:
    """The command as shown in help, the initial configuration, and the flags that change it."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
    if start.plugins and len(words) > 1:
        raise ConfigError(
            f"the name of one configuration is needed, not {listed(words)}; --import takes one module, repeat it"
        )
    name, flags = (rest[0], rest[1:]) if words else ("", rest)
    ways = {"NAME": name, "--config FILE": start.config, "--resume RUN": start.resume}
    given = [way for way, value in ways.items() if value]
    if not given:
        raise ConfigError(f"the name of a configuration comes first: {PROG} NAME [--flags]")
    if len(given) > 1:
        raise ConfigError(f"give one of {' and '.join(given)}, not both")
    if start.resume:
        return f"{PROG} --resume {shlex.quote(start.resume)}", read_run(start.resume), flags
    if start.config:
        return f"{PROG} --config {shlex.quote(start.config)}", read_config(start.config), flags
    return f"{PROG} {name}", named.load(name), flags


def _next(argv: list[str], config: RunConfig, plugins: Sequence[str]) -> str:
    """Suggested commands for a finished run, one per line."""
    *python, _ = typed_before(argv)
    folder = run_folder(config)
    more = round(1.5 * config.train.steps) if config.train.steps else 0
    further = ["--train.steps", str(more)] if more else ["--train.epochs", str(config.train.epochs + 1)]
    commands = (
        *([["train.sample", str(folder), "--interactive"]] if config.data.is_text and config.model.causal else []),
        ["train.evaluate", str(folder)],
        ["train.inspect", str(folder), "--html", str(folder / "report.html")],
        ["train", "--resume", str(folder), *further],
    )
    imports = cli.importing(plugins)
    return "\n".join(["next:", *(f"  {shlex.join([*python, *command, *imports])}" for command in commands)])


def _resumed(folder: str, config: RunConfig) -> RunConfig:
    if config.run_dir != folder or not config.train.resume:
        raise ConfigError(f"--resume {folder} says where the run is and that it goes on; leave out the other flag")
    return config


def _resuming(start: Start, config: RunConfig) -> list[str]:
    """The arguments that continue the run: all else is in its folder."""
    words = ["--resume", str(run_folder(config)), *cli.importing(start.plugins)]
    for field in dataclasses.fields(start.distributed):
        value = getattr(start.distributed, field.name)
        if value != field.default:
            words += [f"--distributed.{field.name.replace('_', '-')}", str(value)]
    return words


def typed_before(argv: list[str]) -> list[str]:
    """The part of the command line before ``argv``, as it was typed."""
    return sys.orig_argv[: -len(argv)] if sys.orig_argv[-len(argv) :] == argv else shlex.split(PROG)


def listing() -> str:
    """What can be trained by name."""
    lines = [entry(name, named.describe(name)) for name in named.names()]
    over = f"any of these over another residual topology: {', '.join(registry.names('topology'))}"
    return "\n".join([*lines, entry("NAME@TOPOLOGY", over)])


def entry(name: str, words: str) -> str:
    """A line of a list in the width of the terminal: long words are broken, and stand under a long name."""
    blank = " " * INDENT
    words = textwrap.fill(words, shutil.get_terminal_size().columns, initial_indent=blank, subsequent_indent=blank)
    return f"  {name}\n{words}" if len(name) > INDENT - 4 else f"  {name:<{INDENT - 2}}{words.lstrip()}"


def help_text(prog: str, config: RunConfig, common: Mapping[str, str]) -> str:
    """The most common flags, with their initial values.

    Args:
        common: the meaning of each flag; those that the configuration has not are left out.
    """
    own = {flag for flag, _ in flags_of(config)}
    lines = [entry(flag, f"{words} ({_value(config, flag)})") for flag, words in common.items() if flag in own]
    kinds = listed(part.flag for part in parts_of(config) if part.flag.startswith("--model."))
    words, columns = f"Parts of another kind, as in --model.norm ln: {kinds}", shutil.get_terminal_size().columns
    other = textwrap.fill(words, columns, break_on_hyphens=False)
    return f"usage: {prog} [--flags]\n\n" + "\n".join(lines) + f"\n\n{other}\nAll flags: {prog} --help-all"


def _value(config: RunConfig, flag: str) -> str:
    value = config
    for name in flag.removeprefix("--").replace("-", "_").split("."):
        value = getattr(value, name)
    return repr(value) if value == "" else str(value)


if __name__ == "__main__":
    with peers.leaving():
        cli.run(main)
