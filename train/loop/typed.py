"""Configurations as one argument of a command that takes several: ``"[LABEL=]NAME[@TOPOLOGY] [--flags]"``."""

import dataclasses
import shlex
from collections.abc import Sequence

import tyro

from mhc_jax.config import ConfigError
from train.config import RunConfig
from train.loop import named
from train.terminal import cli


@dataclasses.dataclass(frozen=True)
class Typed:
    """A configuration as it was typed.

    Attributes:
        label: what tables call it; its name if it has no label.
        name: of the configuration, with its topology if it has another one.
        flags: of ``python -m train``, for it alone.
    """

    label: str
    name: str
    flags: tuple[str, ...] = ()

    def load(self, flags: Sequence[str] = ()) -> RunConfig:
        """The configuration with ``flags``, and then with its own.

        Raises:
            ConfigError: no such configuration, topology or flag; the message begins with the label.
        """
        markers = (tyro.conf.AvoidSubcommands,)
        try:
            start = named.load(self.name)
            return cli.parse(RunConfig, [*flags, *self.flags], prog=self.name, default=start, markers=markers)
        except ConfigError as error:
            raise ConfigError(f"{self.label}: {error}") from None


def flags_in(words: str, where: str = "--train-flags") -> tuple[str, ...]:
    """The flags in one argument.

    Raises:
        ConfigError: quotes that do not end; the message names ``where`` they are.
    """
    try:
        return tuple(shlex.split(words))
    except ValueError as error:
        raise ConfigError(f"{where} cannot be split into words ({error}): {words}") from None


def typed(words: str) -> Typed:
    """The parts of such an argument.

    Raises:
        ConfigError: it has no name, or quotes that do not end.
    """
    name, *flags = flags_in(words, "NAME") or ("",)
    if not name or name.startswith("-"):
        raise ConfigError(f"expected the name of a configuration, perhaps with flags, got {words!r}")
    label, _, name = name.rpartition("=")
    return Typed(label or name, name, tuple(flags))
