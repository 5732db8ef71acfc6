"""SIGTERM and SIGINT as a request to stop after the current step."""

import signal
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """While the context is open, the first signal asks the loop to stop; the second acts as usual, at once."""

    def __enter__(self) -> Self:
        self._signal: int | None = None
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

    def requested(self) -> bool:
        """Whether any process was asked to stop. With several processes, all must ask at the same step."""
        mine = self._signal is not None
        if jax.process_count() == 1:
            return mine
        return bool(multihost_utils.process_allgather(np.asarray(mine)).any())
