"""Progress output: bars on a terminal, plain lines elsewhere, only on process 0."""

import contextlib
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Self, TypeVar

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

# Between two lines about the same piece of work where there is no terminal.
LINE_EVERY_S = 10.0

# All but tabs and ends of lines.
_CODES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")

# The bars of this process: rich draws one display at a time, so all of them stand in it.
_bars: Progress | None = None


class Task:
    """A piece of work under way, see :func:`task`."""

    def __init__(self, what: str, total: float | None, done: float, spell: Callable[[float], str]):
        self._what, self._total, self._spell = what, total, spell
        self._start, self._first, self.done = time.monotonic(), done, done
        self._said = self._start
        self._id = _bars and _bars.add_task(what, total=total, completed=done, amount=self._amount(), status="")

    def advance(self, amount: float = 1, *, status: str = "") -> None:
        """Advances the bar by ``amount``; ``status`` is shown next to it."""
        self.done += amount
        if _bars:
            _bars.update(self._id, completed=self.done, amount=self._amount(), status=status)
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            _note(f"{self._what}: {self._amount()}{self._rate()}")

    def over(self, items: Iterable[T], size: Callable[[T], float] = lambda item: 1) -> Iterator[T]:
        """``items``, each of them done when the next one is asked for."""
        for item in items:
            yield item
            self.advance(size(item))

    def close(self) -> None:
        """Takes the bar away."""
        if _bars:
            _bars.remove_task(self._id)

    def _amount(self) -> str:
        if self._total is None:
            return self._spell(self.done) if self.done else ""
        return f"{self._spell(self.done)}/{self._spell(self._total)}"

    def _rate(self) -> str:
        speed = (self.done - self._first) / (self._said - self._start)
        left = f", ETA {clock((self._total - self.done) / speed)}" if self._total and speed else ""
        return f", {self._spell(speed)}/s{left}"


@contextlib.contextmanager
def task(
    what: str,
    total: float | None = None,
    *,
    done: float = 0,
    spell: Callable[[float], str] = "{:,.0f}".format,
    quiet: bool = False,
) -> Iterator[Task]:
    """Announces a task and reports its progress, speed and remaining time.

    On a terminal that is a bar, which disappears at the end. Elsewhere it is a line on standard error at the start and
    one every ten seconds, so that standard output holds only results.

    Args:
        what: is done, as "evaluating the test split".
        total: total amount of work, if known.
        done: amount of work already done.
        spell: puts an amount in words.
        quiet: for what happens often: no line at the start.
    """
    global _bars
    outermost = None
    if jax.process_index() == 0 and sys.stdout.isatty() and sys.stderr.isatty() and _bars is None:
        about = TextColumn("{task.description} {task.fields[amount]} [cyan]{task.fields[status]}")
        columns = (about, BarColumn(None), TimeRemainingColumn(compact=True))
        outermost = _bars = Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
        _bars.start()
    elif _bars is None and not quiet:
        _note(what)
    running = Task(what, total, done, spell)
    try:
        yield running
    finally:
        running.close()
        if outermost:
            outermost.stop()
            _bars = None


def clock(seconds: float) -> str:
    """``"0:07"``, ``"1:02:03"``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _note(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def shown(text: str) -> str:
    """Text that a model wrote, as a terminal may show it: codes that would command the terminal are spelled."""
    return _CODES.sub(lambda code: f"\\x{ord(code[0]):02x}", text) if sys.stdout.isatty() else text


def say(text: str) -> None:
    """A line on process 0, above the bars if there are any."""
    if jax.process_index() != 0:
        return
    if _bars:
        # Not broken at the terminal's width: a command that is printed can be copied.
        _bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        print(text, flush=True)


class Display:
    """Reports the steps of a training run from ``start`` to ``total``: a bar on a terminal, lines elsewhere."""

    def __init__(self, start: int, total: int, *, bar: bool):
        self._start, self._total, self._bar = start, total, bar
        self._said = -LINE_EVERY_S
        self._status = ""

    def __enter__(self) -> Self:
        self._open = contextlib.ExitStack()
        self._task = (
            self._open.enter_context(task("step", self._total, done=self._start, quiet=True, spell="{:.0f}".format))
            if self._bar
            else None
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self._task and _bars:
            self._task.advance(step - self._task.done, status=self._status)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Loss, learning rate, gradient norm and speed up to a step, next to the bar or as occasional lines."""
        speed = values.get("tokens_per_second", 0)
        words = [
            f"loss {values['loss']:.3f}",
            f"lr {values['lr']:.1e}".replace("e-0", "e-"),
            f"|g| {values['grad_norm']:.2f}",
            f"{_short(speed)} tok/s",
            *([f"MFU {values['mfu']:.0%}"] if "mfu" in values else []),
            *([f"{values['skipped']:.0f} skipped"] if values["skipped"] else []),
        ]
        self._status = " ".join(words)
        self.step(step)
        last = step == self._total
        if (self._task and _bars) or not (last or time.monotonic() - self._said >= LINE_EVERY_S):
            return
        self._said = time.monotonic()
        left = (self._total - step) * values["tokens"] / speed if speed else 0
        say("  ".join([f"step {step}/{self._total}", *words, f"ETA {clock(left)}"]))


def _short(number: float) -> str:
    """Three digits: ``"37.1k"``, ``"1.20M"``."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


class _Lines(logging.Handler):
    def emit(self, record):
        say(self.format(record))


def show_log(name: str) -> None:
    """Prints the log of a package's modules as lines on process 0."""
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = [_Lines(logging.INFO)], False
    logger.setLevel(logging.INFO)
