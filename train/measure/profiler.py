"""A trace of some training steps, for Perfetto or TensorBoard."""

from pathlib import Path
from typing import Any, Self

import jax

from train.terminal.console import say

FOLDER = "profile"


class Profiler:
    """Traces the steps of ``"FROM:TO"``, both included, into ``RUN/profile``; nothing if the text is empty."""

    def __init__(self, folder: Path, steps: str):
        self._folder, self._running = folder / FOLDER, False
        self._first, self._last = map(int, steps.split(":")) if steps else (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """A trace that an interruption cuts short is kept."""
        if self._running:
            self._stop()

    def before(self, step: int) -> None:
        """Must be called before a step is dispatched."""
        if self._first <= step <= self._last and not self._running:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Must be called after a step is dispatched, with its results."""
        if self._running and step == self._last:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        say(f"trace in {self._folder}: open perfetto_trace.json.gz at ui.perfetto.dev, or the folder with TensorBoard")
