"""Command lines: dataclasses become flags, and every fault becomes one line on standard error and exit status 2."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from mhc_jax.config import ConfigError
from train import interrupt

T = TypeVar("T")


def parse(
    record: type[T], argv: Sequence[str], *, prog: str, default: T | None = None, markers: Sequence[Any] = ()
) -> T:
    """``record`` filled from flags, starting from ``default``. ``--help`` prints the flags and exits.

    Args:
        record: a dataclass; its docstring is the help.
        argv: without the program's name.
        prog: as shown in the help.
        default: what flags that are not given keep.
        markers: of :mod:`tyro.conf`, for the whole command.

    Raises:
        ConfigError: an unknown flag (the nearest is named), a value of the wrong type, or a missing argument.
    """
    start = tyro.MISSING_NONPROP if default is None else default
    with _one_line_faults():
        return tyro.cli(record, args=list(argv), prog=prog, config=list(markers), default=start)


def parse_named(record: type[T], argv: Sequence[str], *, prog: str, default: Callable[[str], T]) -> T:
    """:func:`parse` for records whose first argument is a name that decides the defaults of all other flags.

    Args:
        default: the record of a name.

    Raises:
        ConfigError: as :func:`parse`, or a flag before the name.
    """
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    if not argv or argv[0].startswith("-"):
        parse(record, argv, prog=prog, markers=markers)  # prints the help, or says what is missing
        raise ConfigError(f"the name comes before the flags: {prog} NAME [--flags]")
    return parse(record, argv, prog=prog, default=default(argv[0]), markers=markers)


def parse_known(record: type[T], argv: Sequence[str]) -> tuple[T, list[str]]:
    """``record`` filled from those flags that are its own, and the other arguments in order, ``--help`` among them.

    Raises:
        ConfigError: a value of the wrong type.
    """
    with _one_line_faults():
        return tyro.cli(record, args=list(argv), return_unknown_args=True, add_help=False)


@contextlib.contextmanager
def _one_line_faults() -> Iterator[None]:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
    except SystemExit as exit:
        if not exit.code:
            raise
        raise ConfigError(_one_line(complaint.getvalue())) from None


def _one_line(box: str) -> str:
    """The fault, and the nearest flag if there is one, out of tyro's message: a frame, or rules on a plain terminal."""
    lines = [line.strip("│ \t") for line in box.splitlines()]
    rules = [i for i, line in enumerate(lines) if line.startswith(("╭─", "───", "╰─", "---"))]
    first, second = [*rules, len(lines)][:2]
    fault = " ".join(lines[first + 1 : second]).strip().rstrip(".")
    near = re.search(r"Perhaps you meant:\s+(--\S+)", " ".join(lines))
    return f"{fault}; did you mean {near[1]}?" if near else f"{fault}; see --help"


def run(main: Callable[[list[str]], None]) -> None:
    """Calls ``main`` with the command line and makes one line of what stops it.

    Exit status 2 after a ConfigError or OSError, 130 after SIGINT, 143 after SIGTERM.
    """
    try:
        with interrupt.raising():
            main(sys.argv[1:])
    except (ConfigError, OSError) as error:
        _stop(f"error: {error}", 2)
    except KeyboardInterrupt as stop:
        _stop(str(stop) or "interrupted", interrupt.status(stop))


def _stop(line: str, status: int) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(status)
