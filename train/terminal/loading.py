"""The start of a command, from the first import of its package to its first own line."""

import gc
import sys

from train.terminal import interrupt


def begins(package: str) -> None:
    """Called by a package that holds commands when it is imported; does nothing where it is imported as a library.

    While Python looks for the module of ``python -m``, and only then, ``sys.argv[0]`` is ``"-m"``.
    """
    if sys.argv[:1] != ["-m"] or package not in {word.removeprefix("-m").split(".")[0] for word in sys.orig_argv}:
        return
    interrupt.guard()
    # Nothing that a command loads is garbage, and looking for some takes a quarter of the time.
    gc.disable()


def ends() -> None:
    """What is loaded by now stays, and is not looked through for garbage later either."""
    gc.freeze()
    gc.enable()
