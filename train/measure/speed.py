"""Speed of training, and the peak rates of devices."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import jax

# Dense bfloat16 operations per second of one device, from the makers' data sheets; the first name found in
# jax's device_kind counts.
PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """The entry of :data:`PEAK_FLOPS`; None for a device that is not listed."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device.device_kind), None)


class Meter:
    """Speed between two readings, and over the whole run; time outside :meth:`running` does not count."""

    def __init__(self, tokens_per_step: int, flops_per_token: int, before: Mapping[str, float] | None = None):
        """Continues from ``before``, the :meth:`total` of the run so far."""
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        peak = peak_flops(jax.devices()[0])
        self._peak = peak and peak * jax.device_count()
        self._total = {"steps": 0, "seconds": 0.0} | dict(before or {})
        self.restart()

    def restart(self) -> None:
        """Forgets the time since the last reading."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def step(self) -> None:
        """Counts one finished step."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """``tokens_per_second``, ``data_wait`` (fraction of time), ``flops_per_second``; ``mfu`` on known devices."""
        seconds = time.perf_counter() - self._start
        speed = self._steps * self.tokens_per_step / seconds
        reading = {
            "tokens_per_second": speed,
            "data_wait": self._waited / seconds,
            "flops_per_second": speed * self.flops_per_token,
        }
        if self._peak:
            reading["mfu"] = reading["flops_per_second"] / self._peak
        self._total["seconds"] += seconds
        self._total["steps"] += self._steps
        self.restart()
        return reading

    def total(self) -> dict[str, float]:
        """``steps`` and ``seconds`` of all readings."""
        return dict(self._total)

    def average(self) -> float | None:
        """Tokens per second over all readings."""
        return self._total["steps"] * self.tokens_per_step / self._total["seconds"] if self._total["steps"] else None
