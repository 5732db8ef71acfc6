"""Command lines: dataclasses become flags, and every fault becomes one line on standard error and exit status 2."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from mhc_jax.config import ConfigError

T = TypeVar("T")


def parse(record: type[T], argv: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """``record`` filled from flags, starting from ``default``. ``--help`` prints the flags and exits.

    Raises:
        ConfigError: an unknown flag (the nearest is named), a value of the wrong type, or a missing argument.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = {} if default is None else {"default": default}
            return tyro.cli(record, args=list(argv), prog=prog, config=(tyro.conf.AvoidSubcommands,), **options)
    except SystemExit as exit:
        if not exit.code:
            raise
    raise ConfigError(_one_line(complaint.getvalue()))


def _one_line(box: str) -> str:
    """The fault, and the nearest flag if there is one, out of tyro's framed message."""
    lines = [line.strip("│ \t") for line in box.splitlines() if line.startswith("│")]
    rule = next((i for i, line in enumerate(lines) if line.startswith("───")), len(lines))
    fault = " ".join(lines[:rule]).rstrip(".")
    near = re.search(r"Perhaps you meant:\s+(--\S+)", " ".join(lines))
    return f"{fault}; did you mean {near[1]}?" if near else f"{fault}; see --help"


def run(main: Callable[[list[str]], None]) -> None:
    """Calls ``main`` with the command line; a ConfigError or OSError is printed as one line, with exit status 2."""
    try:
        main(sys.argv[1:])
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
