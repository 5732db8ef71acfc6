"""What a run reports: speed, and the lines of ``metrics.jsonl`` with their copies elsewhere."""

import contextlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import jax
import numpy as np

from mhc_jax.config import ConfigError
from train import streams
from train.config import LogConfig, RunConfig

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

METRICS_FILE, SUMMARY_FILE = "metrics.jsonl", "summary.json"


def peak_flops(device: jax.Device) -> float | None:
    """Of :data:`PEAK_FLOPS`; None for a device that is not listed."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device.device_kind), None)


class Meter:
    """Speed between two readings, and over the whole run; time outside :meth:`running` does not count."""

    def __init__(self, tokens_per_step: int, flops_per_token: int, before: Mapping[str, float] | None = None):
        """Goes on from ``before``, the :meth:`total` of what was done of the run."""
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        peak = peak_flops(jax.devices()[0])
        self._peak = peak and peak * jax.device_count()
        self._total = {"steps": 0, "seconds": 0.0} | dict(before or {})
        self.restart()

    def restart(self) -> None:
        """Forgets what has passed since the last reading."""
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


class Mean:
    """The mean of what came since the last reading, without what is not finite; its state travels with checkpoints."""

    def __init__(self, before: Mapping[str, float] | None = None):
        self.state = {"sum": 0.0, "count": 0} | dict(before or {})

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.state = {"sum": self.state["sum"] + value, "count": self.state["count"] + 1}

    def read(self, *, forget: bool) -> float:
        """NaN if nothing came."""
        total, count = self.state["sum"], self.state["count"]
        if forget:
            self.state = {"sum": 0.0, "count": 0}
        return total / count if count else math.nan


class Sink(Protocol):
    """Somewhere that metrics go besides ``metrics.jsonl``."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def write_sites(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Distributions over sites."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Scalars as TensorBoard events in ``RUN/tensorboard``."""

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step, values):
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def write_sites(self, step, values):
        for name, by_site in values.items():
            self._writer.add_histogram(name, by_site, step)

    def close(self):
        self._writer.close()


class WeightsAndBiases:
    """Scalars to a Weights & Biases project; a resumed run continues the same curve."""

    def __init__(self, folder: Path, config: RunConfig):
        import wandb  # pyright: ignore[reportMissingImports]  (optional)

        self._wandb = wandb
        name = folder.absolute().name
        self._run = wandb.init(
            project=config.log.wandb, name=name, id=name, dir=str(folder), resume="allow", config=config.to_dict()
        )

    def write(self, step, values):
        self._run.log(values, step=step)

    def write_sites(self, step, values):
        self._run.log({name: self._wandb.Histogram(by_site) for name, by_site in values.items()}, step=step)

    def close(self):
        self._run.finish()


def check_sinks(config: LogConfig) -> None:
    """Raises ConfigError if a package that ``config`` asks for is not installed."""
    for asked, flag, package in (
        (config.tensorboard, "--log.tensorboard", "tensorboardX"),
        (config.wandb, "--log.wandb", "wandb"),
    ):
        if asked and importlib.util.find_spec(package) is None:
            raise ConfigError(f"{flag} needs {package}, which is not installed: pip install 'mhc-jax[tracking]'")


class MetricsLog:
    """``metrics.jsonl``, one JSON object a line, written at once; and the sinks that were asked for."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        *,
        start: int,
        scored: bool = True,
        callbacks: Sequence[Callable[[int, dict[str, float]], None]] = (),
    ):
        """Keeps what a resumed run does not repeat: lines of steps up to ``start``, its scores only if ``scored``.

        Args:
            callbacks: called on process 0 with the step and the values of every line but those of streams.
        """
        self._sinks: list[Sink] = []
        self._stream = None
        self._callbacks, self._tokens_per_step = callbacks, config.data.batch_size * config.data.seq_len
        if jax.process_index() != 0:
            return
        file = folder / METRICS_FILE
        kept = [line for line in read_metrics(file) if line["step"] <= start]
        if not scored:
            kept = [line for line in kept if line["step"] < start or not {"val_loss", "final_val_loss"} & line.keys()]
        # A kill at this moment leaves the old file or the new one.
        fresh = file.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        fresh.replace(file)
        self._stream = file.open("a", encoding="utf-8")
        if config.log.tensorboard:
            self._sinks.append(TensorBoard(folder))
        if config.log.wandb:
            self._sinks.append(WeightsAndBiases(folder, config))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream:
            self._stream.close()
        for sink in self._sinks:
            sink.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, on process 0, with ``total_tokens`` so far; a value that is not finite is written as null."""
        values = {"total_tokens": step * self._tokens_per_step, **values}
        self._line(step, values)
        if self._stream:
            for callback in self._callbacks:
                callback(step, values)
        for sink in self._sinks:
            sink.write(step, values)

    def write_streams(self, step: int, recorded: dict[str, Any]) -> None:
        """One line ``{"step": ..., "streams": recorded}``; summaries and distributions over sites to the sinks.

        Args:
            recorded: as from :func:`train.streams.record`.
        """
        self._line(step, {"streams": recorded})
        for sink in self._sinks:
            sink.write(step, {f"streams/{name}": value for name, value in streams.summaries(recorded).items()})
            finite = {name: x[np.isfinite(x)] for name, x in streams.by_site(recorded).items()}
            sink.write_sites(step, {f"streams_by_site/{name}": x for name, x in finite.items() if x.size})

    def _line(self, step: int, values: dict[str, Any]) -> None:
        if self._stream:
            finite = jax.tree.map(lambda value: value if math.isfinite(value) else None, values)
            self._stream.write(json.dumps({"step": step, **finite}) + "\n")
            self._stream.flush()


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, without one that a killed process left half written at its end.

    Raises:
        ConfigError: a line is not what :class:`MetricsLog` writes.
    """
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]
    return [_parsed(line, f"{file}, line {number}") for number, line in enumerate(lines, start=1)]


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is damaged ({str(error).splitlines()[0]}); remove that line") from None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        raise ConfigError(f"{where} is damaged (no object with a whole number as its step); remove that line")
    for name, value in values.items():
        fits = isinstance(value, dict) if name == "streams" else value is None or type(value) in (int, float)
        if not fits:
            raise ConfigError(f"{where} is damaged ({name} is not what a run writes); remove that line")
    return values


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What ``summary.json`` of a run says; None if there is none, as before its end.

    Raises:
        ConfigError: it is damaged.
    """
    file = folder / SUMMARY_FILE
    if not file.is_file():
        return None
    try:
        summary = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is damaged ({str(error).splitlines()[0]})") from None
    if not isinstance(summary, dict):
        raise ConfigError(f"{file} is damaged (it holds no object)")
    return summary
