"""The escape corpus in each environment that can be had here: ``python -m mhc_jax.rlm.environments [NAME ...]``.

``bare``, the last, is no environment: bubblewrap without the filter of system calls, with the folder /proc and the
host's variables, to show what these layers are for. Exit status 1 if anything gets out of one of the others.
"""

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from mhc_jax.registry import unknown
from mhc_jax.rlm.environments import Bwrap, Environment, HardenedMonty, Monty, SandboxUnavailable
from mhc_jax.rlm.environments.escape import ATTEMPTS, Arena


class Bare(Bwrap):
    """bubblewrap alone, for comparison; never to be used."""

    name = "bare"
    variables = os.environ

    def _filter(self) -> bytes:
        return b""

    def _judge(self, managed: list[str]) -> None:
        pass

    def _arguments(self) -> list[str]:
        return ["--proc", "/proc", *super()._arguments()]


# Of all attempts in one environment, some of which last until a limit of time.
SECONDS = 20
# What stands beside a name.
ABOUT = {"bare": " (for comparison, never offered: no filter of system calls, but /proc and the host's variables)"}
KINDS = {kind.name: kind for kind in (Monty, HardenedMonty, Bwrap, Bare)}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each attempt and environment, and exits with 1 if one that is offered does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m mhc_jax.rlm.environments",
        description="Makes all attempts to get out of each environment. Exit status 1 if one succeeds, except in bare:"
        " bubblewrap without its filter of system calls, to show what that is for.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(KINDS)}; all if none is given")
    names = parser.parse_args(argv).names or [*KINDS]
    for name in names:
        if name not in KINDS:
            parser.error(unknown("environment", name, KINDS))
    print(f"{len(ATTEMPTS)} attempts in each of {', '.join(names)}; up to {SECONDS} s each", file=sys.stderr)
    escaped = [name for name in names if not holds(KINDS[name])]
    sys.exit(1 if set(escaped) - {Bare.name} else 0)


def holds(kind: type[Environment]) -> bool:
    """Whether an environment holds against all attempts, or refuses to start; with what it meets on standard output."""
    trial = kind()
    try:
        trial.start({}, {})
    except SandboxUnavailable as error:
        print(f"{kind.name}: {error}\n")
        return True
    trial.close()
    columns, out = shutil.get_terminal_size().columns, 0
    print(textwrap.fill(f"{kind.name}{ABOUT.get(kind.name, '')}", columns))
    with Arena() as arena:
        for attempt in ATTEMPTS:
            held, words = arena.run(attempt, kind)
            out += not held
            line = f"  {'held' if held else 'OUT '}  {attempt.name}: {words}"
            print(textwrap.fill(line, columns, subsequent_indent=" " * 8, max_lines=9, placeholder="..."), flush=True)
    print(f"  {out} of {len(ATTEMPTS)} got out\n")
    return not out


if __name__ == "__main__":
    main()
