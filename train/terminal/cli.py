"""Command lines: dataclasses become flags, and every fault becomes one line on standard error and exit status 2."""

import contextlib
import errno
import importlib
import io
import os
import re
import select
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TextIO, TypeVar

import tyro

from mhc_jax import registry
from mhc_jax.config import ConfigError, FieldError
from train.terminal import flags, interrupt, loading
from train.terminal.flags import PLUGIN

T = TypeVar("T")

HELP = {"-h", "--help"}

# Refused to a writer that has opened its file before.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# tyro's words about arguments that are not given; of each follow its name, the type of a flag, and its help.
_MISSING = re.compile(r"Missing from .*?: (.*)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

STRAY = "no flag takes"
# Characters of a message.
LONGEST = 1200


def parse(
    record: type[T], argv: Sequence[str], *, prog: str, default: T | None = None, markers: Sequence[Any] = ()
) -> T:
    """``record`` filled from flags, starting from ``default``. ``--help`` prints the flags and exits.

    Without ``default`` help leaves out the parts of the record, because a run or a configuration decides their values.
    Every command takes ``--import MODULE``: a kind from outside that a run is made of registers itself when its module
    is imported. A flag with the name of a part chooses its kind; see :func:`train.terminal.flags.kinds_chosen`.

    Args:
        record: a dataclass; its docstring is the help.
        argv: without the program's name.
        prog: command name shown in the help.
        default: values of flags that are not given.
        markers: markers of :mod:`tyro.conf` for the whole command.

    Raises:
        ConfigError: an unknown flag (ours of that meaning, or the nearest, is named), a value of the wrong type, or a
            missing argument.
    """
    more = [third for first, _, third in zip(argv, argv[1:], argv[2:], strict=False) if first == PLUGIN]
    if PLUGIN not in dict(flags.flags_of(record)):
        argv = _without_plugins(argv)
        if HELP & {*argv}:
            record, default = flags.with_plugins(record, default)
    if default is not None:
        default, argv = flags.kinds_chosen(default, argv)
    elif HELP & {*argv}:
        record = flags.without_parts(record)
    known = dict(flags.flags_of(record if default is None else default))
    switches = [flag for flag, hint in known.items() if hint is bool]
    argv = flags.switches_spelled(argv, switches)
    start = tyro.MISSING_NONPROP if default is None else default
    with _folded_help(), _one_line_faults(argv, known, [*map(flags.negated, switches), "--help"], more):
        return tyro.cli(record, args=argv, prog=prog, config=list(markers), default=start)


def parse_named(record: type[T], argv: Sequence[str], *, prog: str, default: Callable[[str], T]) -> T:
    """:func:`parse` for records whose first argument is a name that decides the defaults of all other flags.

    Args:
        default: the record of a name.

    Raises:
        ConfigError: see :func:`parse`, or a flag before the name.
    """
    markers = (tyro.conf.AvoidSubcommands,)
    argv = _without_plugins(argv)
    if not argv or argv[0].startswith("-"):
        parse(record, argv, prog=prog, markers=markers)  # prints the help, or names what is missing
        raise ConfigError(f"the name comes before the flags: {prog} NAME [--flags]")
    return parse(record, argv, prog=prog, default=default(argv[0]), markers=markers)


def load_plugin(module: str) -> None:
    """Imports it; it may register configurations, topologies and kinds of any axis.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        importlib.import_module(module)
    except Exception as error:  # any error that a module may raise
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        here = isinstance(error, ModuleNotFoundError) and error.name == module
        advice = "; its folder must be the current directory, or on PYTHONPATH" if here else ""
        raise ConfigError(f"{PLUGIN} {module}: {kind}{error}{advice}") from error


def importing(plugins: Iterable[str]) -> list[str]:
    """The arguments that import them."""
    return [word for plugin in plugins for word in (PLUGIN, plugin)]


def plugins_apart(argv: Sequence[str]) -> list[str]:
    """The arguments with ``--import A B`` as ``--import A --import B``; for commands that take nothing but flags."""
    apart, listing = [], False
    for word in argv:
        if listing and not word.startswith("-") and apart[-1] != PLUGIN:
            apart.append(PLUGIN)
        listing = word.partition("=")[0] == PLUGIN if word.startswith("-") else listing
        apart.append(word)
    return apart


def _without_plugins(argv: Sequence[str]) -> list[str]:
    """The arguments without ``--import MODULE``, which is imported."""
    rest = []
    words = iter(argv)
    for word in words:
        flag, equals, module = word.partition("=")
        if flag != PLUGIN:
            rest.append(word)
        elif module := module if equals else next(words, ""):
            load_plugin(module)
        else:
            raise ConfigError(f"{PLUGIN} needs a value")
    return rest


def parse_known(record: type[T], argv: Sequence[str]) -> tuple[T, list[str]]:
    """``record`` filled from those flags that are its own, and the other arguments in order, ``--help`` among them.

    Raises:
        ConfigError: a value of the wrong type.
    """
    with _one_line_faults(argv, dict(flags.flags_of(record))):
        return tyro.cli(record, args=list(argv), return_unknown_args=True, add_help=False)


@contextlib.contextmanager
def _one_line_faults(
    argv: Sequence[str], known: Mapping[str, Any], others: Sequence[str] | None = None, modules: Collection[str] = ()
) -> Iterator[None]:
    """Faults of tyro as one line; unknown flags are those that are neither ``known`` nor, unless None, ``others``.

    Of ``modules``, words that may have been meant for ``--import``, a fault says how to import several.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
    except SystemExit as exit:
        if not exit.code:
            raise
        given = [argument for argument in argv if argument.startswith("--")]
        unknown = [flag for flag in given if others is not None and flags.normal(flag) not in (*known, *others)]
        fault = flags.instead_of(unknown[0], [*known, *(others or ())]) if unknown else flags.misfit(argv, known)
        fault = fault or _one_line(complaint.getvalue())
        if any(fault.startswith(f"{STRAY} {module};") for module in modules):
            fault += f"; {PLUGIN} takes one module, repeat it"
        raise ConfigError(fault) from None


class _Help(io.StringIO):
    """Held back, with the frames and colours that standard output takes."""

    def __init__(self, out: TextIO):
        super().__init__()
        self._out = out

    @property
    def encoding(self) -> str:
        return self._out.encoding

    def isatty(self) -> bool:
        return self._out.isatty()


@contextlib.contextmanager
def _folded_help() -> Iterator[None]:
    """Help in the width of the terminal: tyro folds its boxes, but neither the usage nor what stands above them."""
    held, width = _Help(sys.stdout), shutil.get_terminal_size().columns
    try:
        with contextlib.redirect_stdout(held):
            yield
    finally:
        for line in held.getvalue().splitlines():
            wide = len(_COLOUR.sub("", line)) > width
            print(textwrap.fill(line, width, subsequent_indent="  ") if wide else line)


def _one_line(box: str) -> str:
    """The fault out of tyro's message: a frame, or rules on a plain terminal."""
    lines = [line.strip("│ \t") for line in box.splitlines()]
    rules = [i for i, line in enumerate(lines) if line.startswith(("╭─", "───", "╰─", "---"))]
    first, second = [*rules, len(lines)][:2]
    fault = " ".join(lines[first + 1 : second]).strip().rstrip(".")
    if missing := _MISSING.match(fault):
        fault = "; ".join(_missing(*part.split()) for part in missing[1].split("(required)") if part)
    return f"{fault.replace('Unrecognized options:', STRAY)}; see --help"


def _missing(name: str, *words: str) -> str:
    about = " ".join(words[1:] if name.startswith("--") else words)
    return f"{name} is missing: {about.rstrip('.')}"


def text(argument: str, flag: str) -> str:
    """An argument as the UTF-8 text that was typed, independent of the locale's decoding.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise ConfigError(f"{flag} is not UTF-8 text: {argument[:60]!r}") from None


def run(main: Callable[[list[str]], None]) -> None:
    """Calls ``main`` with the command line and makes one line of what stops it.

    Exit status 2 after a ConfigError, an OSError or a part without a method, 130 after SIGINT, 143 after SIGTERM, and,
    in silence, 141 once nobody reads the output, as after ``| head``.
    """
    loading.ends()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        with interrupt.raising():
            main(sys.argv[1:])
            sys.stdout.flush()
    except (ConfigError, OSError, UnicodeError, registry.MissingMethodError) as error:
        if isinstance(error, BrokenPipeError) and _unread():
            sys.exit(128 + signal.SIGPIPE)
        _stop(f"error: {message(error)}", 2)
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        loading.leave(interrupt.status(stop))


def _unread() -> bool:
    """Whether nobody reads standard output, rather than another pipe; what is left to write is then dropped."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    closed = bool(poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def _stop(line: str, status: int) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(status)


def message(error: Exception) -> str:
    """The fault in one line of bounded length, with fields named as flags."""
    if isinstance(error, FieldError):
        line = flags.spelled(error)
    elif isinstance(error, UnicodeEncodeError):
        line = f"{error.object!r} cannot be written in this locale's encoding, {error.encoding}; set PYTHONUTF8=1"
    elif isinstance(error, OSError) and error.errno in FULL and not error.filename:
        line = f"{error.strerror} where this command writes; make room in its folders, the token cache's among them"
    else:
        line = str(error)
    line = " ".join(line.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
