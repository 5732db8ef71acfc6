"""The start of a command, from the first import of its package to its first own line, and its end by a signal."""

import contextlib
import gc
import os
import sys
from typing import NoReturn

from train.terminal import interrupt

_process_is_ours = False


def begins(package: str) -> None:
    """Called by a package that holds commands when it is imported; does nothing where it is imported as a library.

    While Python looks for the module of ``python -m``, and only then, ``sys.argv[0]`` is ``"-m"``.
    """
    global _process_is_ours
    if sys.argv[:1] != ["-m"] or package not in {word.removeprefix("-m").split(".")[0] for word in sys.orig_argv}:
        return
    _process_is_ours = True
    interrupt.guard()
    # Nothing that a command loads is garbage, and looking for some takes a quarter of the time.
    gc.disable()


def ends() -> None:
    """Keeps all loaded objects out of later garbage collections."""
    gc.freeze()
    gc.enable()


def leave(status: int) -> NoReturn:
    """Ends a command that a signal has stopped, where it stands.

    XLA may still compile in a separate thread, which must not outlive the interpreter's shutdown.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if _process_is_ours:
        os._exit(status)
    sys.exit(status)
