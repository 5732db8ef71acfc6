"""``python -m train NAME [--flags]``: trains the configuration of that name.

Exit status: 0 done, 2 bad input, 3 stopped because the loss was no longer finite, 130 or 143 stopped by SIGINT or
SIGTERM, which save what was trained.
"""

import dataclasses
import importlib
import shlex
import sys
from typing import Annotated

import tyro

import configs
from mhc_jax.config import ConfigError
from train import cli, interrupt
from train.config import RunConfig
from train.console import show_log
from train.launch import DistributedConfig, join, use_compile_cache
from train.run import NonFiniteError, run

PROG = "python -m train"


@dataclasses.dataclass(frozen=True)
class Launch:
    """What is needed before a configuration can be read.

    Attributes:
        plugins: modules to import first; they may register configurations, topologies and mixers.
        distributed: this process among several.
    """

    plugins: Annotated[tuple[str, ...], tyro.conf.arg(name="import"), tyro.conf.UseAppendAction] = ()
    distributed: DistributedConfig = DistributedConfig()


@dataclasses.dataclass(frozen=True)
class Command(Launch):
    """Trains a language model; every flag changes one field of the configuration."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


def main(argv: list[str]) -> None:
    """The command; without arguments it lists the configurations.

    Raises:
        ConfigError: bad input.
    """
    show_log("train")
    launch, rest = cli.parse_known(Launch, argv)
    # Processes find each other before anything touches a device, and even reading a configuration may.
    join(launch.distributed)
    interrupt.take_back()
    for plugin in launch.plugins:
        _load(plugin)
    if not set(rest) - {"-h", "--help"}:
        print(f"usage: {PROG} NAME [--flags]\n\n{_list()}\n\nAll flags of one: {PROG} NAME --help")
        return
    name, *flags = rest
    if name.startswith("-"):
        raise ConfigError(f"the name of a configuration comes first: {PROG} NAME [--flags]")
    command = cli.parse(
        Command,
        flags,
        prog=f"{PROG} {name}",
        default=Command(launch.plugins, launch.distributed, configs.load(name)),
        markers=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    use_compile_cache()
    resume = argv if command.run.train.resume else [*argv, "--train.resume", "True"]
    try:
        with interrupt.advising("interrupted before a step was trained; the same command starts again"):
            run(command.run, resume_command=shlex.join([*_typed_before(argv), *resume]))
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)


def _typed_before(argv: list[str]) -> list[str]:
    """What stands before ``argv`` in the command line as it was typed."""
    return sys.orig_argv[: -len(argv)] if sys.orig_argv[-len(argv) :] == argv else shlex.split(PROG)


def _load(plugin: str) -> None:
    try:
        importlib.import_module(plugin)
    except ImportError as error:
        raise ConfigError(f"--import {plugin}: {error}") from None


def _list() -> str:
    width = max(map(len, configs.names()))
    return "\n".join(f"  {name:<{width}}  {configs.describe(name)}" for name in configs.names())


if __name__ == "__main__":
    cli.run(main)
