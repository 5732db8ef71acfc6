"""What a person watches: a progress bar on a terminal, plain lines elsewhere, nothing but on process 0."""

import logging
import sys
from typing import Self

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn


class Display:
    """Reports steps from ``start`` to ``total``."""

    def __init__(self, start: int, total: int, *, bar: bool):
        self._visible = jax.process_index() == 0
        self._total = total
        self._bar = None
        if self._visible and bar and sys.stdout.isatty():
            columns = (BarColumn(12), MofNCompleteColumn(), "[cyan]{task.fields[status]}", "ETA", TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(file=sys.stdout))
            self._task = self._bar.add_task("train", total=total, completed=start, status="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Loss, rate and speed of a step: beside the bar, or as a line."""
        speed = values.get("tokens_per_second", 0)
        left = (self._total - step) * values["tokens"] / speed if speed else 0
        skipped = f"  {int(values['skipped'])} skipped" if values["skipped"] else ""
        if self._bar:
            self._bar.update(self._task, status=f"loss {values['loss']:.4f}  {speed:,.0f} tok/s{skipped}")
            return
        self.say(
            f"step {step}/{self._total}  loss {values['loss']:.4f}  lr {values['lr']:.2e}  "
            f"|g| {values['grad_norm']:.3f}  {speed:,.0f} tok/s{skipped}  ETA {left // 60:.0f}:{left % 60:02.0f}"
        )

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._visible:
            print(text, flush=True)


def say(text: str) -> None:
    """A line on process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)


class _Lines(logging.Handler):
    def emit(self, record):
        say(self.format(record))


def show_log(name: str) -> None:
    """Prints what the modules of a package log as lines on process 0."""
    logger = logging.getLogger(name)
    logger.handlers, logger.propagate = [_Lines(logging.INFO)], False
    logger.setLevel(logging.INFO)
