"""SIGINT and SIGTERM: one line on standard error and exit status 130 or 143, after a run has saved what it has.

While a command loads, and when it is about to end, the first signal ends it where it stands. In between the first
signal raises :class:`Interrupted`, so that files and child processes are cleaned up, or, where an :class:`Interrupt` is
open, is noted until the state is saved. The second signal ends the process where it stands, also inside a compilation.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import NoReturn, Self, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ASK_EVERY = 16  # items; several processes wait for each other whenever they ask

_raising = False
_ending = threading.Lock()
_repeated = threading.Semaphore(0)  # signals on their way that are no further ones


class Interrupted(KeyboardInterrupt):
    """The program was asked to stop by a signal; the text, if any, is a message for the user."""

    def __init__(self, number: int, text: str = ""):
        super().__init__(text)
        self.number = number


def status(stop: KeyboardInterrupt) -> int:
    """The exit status of a program that a signal has stopped: 128 and its number."""
    return 128 + (stop.number if isinstance(stop, Interrupted) else signal.SIGINT)


def guard() -> None:
    """Takes over the signals of a command that has begun to load."""
    arrived, note = os.pipe()
    os.set_blocking(note, False)
    signal.set_wakeup_fd(note, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda number, frame: _end(number)) for number in SIGNALS}
    threading.Thread(target=_watch, args=(arrived,), name="signals", daemon=True).start()

    def unguard() -> None:
        signal.set_wakeup_fd(-1)  # a signal to a forked child is none to its parent
        for number, handler in before.items():
            signal.signal(number, handler)

    os.register_at_fork(after_in_child=unguard)


def take_back() -> None:
    """Installs the present handlers again: joining other processes, JAX replaces that of SIGTERM by one that waits."""
    for number in SIGNALS:
        signal.signal(number, signal.getsignal(number))


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Inside, the first signal raises :class:`Interrupted` in the main thread.

    Where Python drops any exception, as in a callback of the garbage collector, it is raised a moment later.
    """
    global _raising
    hook = sys.unraisablehook

    def dropped(what: "sys.UnraisableHookArgs") -> None:
        if isinstance(what.exc_value, Interrupted):
            _repeat(what.exc_value.number)
        else:
            hook(what)

    sys.unraisablehook = dropped
    before = {number: signal.signal(number, _raise) for number in SIGNALS}
    _raising, interrupted = True, False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        sys.unraisablehook = hook
        _raising = interrupted  # the watcher may hear of that signal only after this
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def advising(text: str) -> Iterator[None]:
    """A context in which interruptions without a text get ``text``."""
    try:
        yield
    except Interrupted as stop:
        if str(stop):
            raise
        raise Interrupted(stop.number, text) from None


class Interrupt:
    """While the context is open, the first signal asks the loop to stop; the second acts as usual, at once."""

    def __enter__(self) -> Self:
        self._signal = 0
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: object) -> None:
        self._signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> int:
        """The signal by which any process was asked to stop, or 0. Several processes must all ask at the same point."""
        if _processes() == 1:
            return self._signal
        import numpy as np
        from jax.experimental import multihost_utils

        return int(multihost_utils.process_allgather(np.asarray(self._signal)).max())

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """``items``, asking on the way.

        Raises:
            Interrupted: a process was asked to stop.
        """
        every = 1 if _processes() == 1 else ASK_EVERY
        for index, item in enumerate(items):
            if index % every == 0 and (number := self.requested()):
                raise Interrupted(number)
            yield item


def _processes() -> int:
    import jax  # imported late, because the guard of a loading command must itself load quickly

    return jax.process_count()


def _raise(number: int, frame: object) -> NoReturn:
    raise Interrupted(number)


def _repeat(number: int) -> None:
    _repeated.release()
    main = threading.main_thread().ident
    assert main is not None  # it is running
    threading.Timer(0.01, signal.pthread_kill, [main, number]).start()


def _watch(arrived: int) -> None:
    """Hears of every signal at once; a handler waits until the main thread is back from what it calls."""
    first = True
    while True:
        number = os.read(arrived, 1)[0]
        if number in SIGNALS and not _repeated.acquire(blocking=False):
            if not (first and _raising):
                _end(number)
            first = False


def _end(number: int) -> NoReturn:
    if _ending.acquire(timeout=1):  # never released: whichever thread comes first says it, once
        with contextlib.suppress(OSError):
            # A progress bar hides the cursor; nothing that is buffered may hold this up.
            os.write(2, b"\x1b[?25h\ninterrupted\n" if os.isatty(2) else b"interrupted\n")
    os._exit(128 + number)
