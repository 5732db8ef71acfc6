"""The log of a run: the lines of ``metrics.jsonl`` and their copies in other tools, and running means."""

import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import jax
import numpy as np

from mhc_jax.config import ConfigError
from train.config import LogConfig, RunConfig
from train.report import quantities
from train.storage.folder import METRICS_FILE, read_metrics
from train.storage.outputs import json_text


class Mean:
    """The mean of the finite values since the last reading; checkpoints contain its state."""

    def __init__(self, before: Mapping[str, float] | None = None):
        self.state = {"sum": 0.0, "count": 0} | dict(before or {})

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.state = {"sum": self.state["sum"] + value, "count": self.state["count"] + 1}

    def read(self, *, forget: bool) -> float:
        """The mean; NaN if there is no value."""
        total, count = self.state["sum"], self.state["count"]
        if forget:
            self.state = {"sum": 0.0, "count": 0}
        return total / count if count else math.nan


class Sink(Protocol):
    """A destination of metrics other than ``metrics.jsonl``."""

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
    """``metrics.jsonl``, one JSON object per line, written immediately; and the sinks of the configuration."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        *,
        start: int,
        scored: bool = True,
        callbacks: Sequence[Callable[[int, dict[str, float]], None]] = (),
    ):
        """Keeps the lines that a resumed run does not repeat: up to ``start``, with its scores only if ``scored``.

        Args:
            callbacks: called on process 0 with the step and the values of every line except those of streams.
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
            recorded: statistics from :func:`train.measure.streams.record`.
        """
        self._line(step, {"streams": recorded})
        for sink in self._sinks:
            sink.write(step, {f"streams/{name}": value for name, value in quantities.summaries(recorded).items()})
            finite = {name: x[np.isfinite(x)] for name, x in quantities.by_site(recorded).items()}
            sink.write_sites(step, {f"streams_by_site/{name}": x for name, x in finite.items() if x.size})

    def _line(self, step: int, values: dict[str, Any]) -> None:
        if self._stream:
            self._stream.write(json_text({"step": step, **values}, indent=None))
            self._stream.flush()
