"""The escape corpus in each environment that can be had here: ``python -m mhc_jax.rlm.environments [NAME ...]``.

The last is bubblewrap without the filter of system calls, with the folder /proc and with the host's variables, to show
what these layers are for. Exit status 1 if anything gets out of an environment that is offered.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence

from mhc_jax.rlm.environments import Bwrap, Environment, HardenedMonty, Monty, SandboxUnavailable
from mhc_jax.rlm.environments.escape import ATTEMPTS, Arena


class Bare(Bwrap):
    """bubblewrap alone; never to be used."""

    name = "bare"
    variables = os.environ

    def _filter(self) -> bytes:
        return b""

    def _judge(self, managed: list[str]) -> None:
        pass

    def _arguments(self) -> list[str]:
        return ["--proc", "/proc", *super()._arguments()]


KINDS = {kind.name: kind for kind in (Monty, HardenedMonty, Bwrap, Bare)}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each attempt and environment, and exits with 1 if one that is offered does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m mhc_jax.rlm.environments", description="Makes all attempts to get out."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(KINDS)}; all if none is given")
    names = parser.parse_args(argv).names or [*KINDS]
    if unknown := set(names) - set(KINDS):
        parser.error(f"no environment {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
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
    print(kind.name)
    columns, width, out = shutil.get_terminal_size().columns, max(len(attempt.name) for attempt in ATTEMPTS), 0
    with Arena() as arena:
        for attempt in ATTEMPTS:
            held, words = arena.run(attempt, kind)
            out += not held
            print(f"  {attempt.name:<{width}}  {'held' if held else 'OUT '}  {words}"[:columns], flush=True)
    print(f"  {out} of {len(ATTEMPTS)} got out\n")
    return not out


if __name__ == "__main__":
    main()
