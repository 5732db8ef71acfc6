"""The start of a command, from the first import of its package to its first own line, and its end by a signal."""

import contextlib
import gc
import os
import sys
from pathlib import Path
from typing import NoReturn

from train.terminal import interrupt

# Of the C library: whether it asks the system for pages of 2 MiB. It reads that when a process starts.
TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
WITH_HUGE_PAGES = 2, 35

_process_is_ours = False


def begins(package: str) -> None:
    """Called by a package that holds commands when it is imported; does nothing where it is imported as a library.

    While Python looks for the module of ``python -m``, and only then, ``sys.argv[0]`` is ``"-m"``.
    """
    global _process_is_ours
    if sys.argv[:1] != ["-m"] or package not in {word.removeprefix("-m").split(".")[0] for word in sys.orig_argv}:
        return
    _use_huge_pages()
    _process_is_ours = True
    interrupt.guard()
    # Nothing that a command loads is garbage, and looking for some takes a quarter of the time.
    gc.disable()


def _use_huge_pages() -> None:
    """Starts the process anew with large pages for its arrays, unless whoever started it has chosen for the C library.

    On a CPU every step maps its temporary arrays anew, and to clear their pages of 4 KiB takes an eighth to a fifth of
    it.
    """
    if TUNABLES in os.environ or not _has_huge_pages():
        return
    os.environ[TUNABLES] = HUGE_PAGES
    with contextlib.suppress(OSError):  # then with small ones
        os.execv(sys.executable, sys.orig_argv)


def _has_huge_pages() -> bool:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except (ValueError, OSError):  # another C library, or another system
        return False
    return name == "glibc" and tuple(map(int, version.split("."))) >= WITH_HUGE_PAGES and "[never]" not in modes


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
