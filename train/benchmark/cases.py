"""The comparisons. Every function returns the rows of one table and notes on them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.benchmark.driver import Contender, Timing, alternate
from train.config import RunConfig

JAX, TORCH = "train.benchmark.jax_worker", "train.benchmark.torch_worker"
Row = dict[str, Any]
Table = tuple[list[Row], list[str]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Numbers of turns and of calls, and the interpreter of PyTorch.

    Attributes:
        rounds: turns of every contender.
        calls: timed calls in a turn.
        torch_python: interpreter of the PyTorch contenders; empty to leave them out.
    """

    rounds: int
    calls: int
    torch_python: str

    def time(self, contenders: Mapping[str, Contender]) -> dict[str, Timing]:
        """See :func:`train.benchmark.driver.alternate`; without PyTorch, its contenders are left out."""
        present = {name: c for name, c in contenders.items() if c.module == JAX or self.torch_python}
        return alternate(present, rounds=self.rounds, calls=self.calls)

    def both(self, spec: dict[str, Any]) -> dict[str, Contender]:
        """JAX, eager PyTorch and compiled PyTorch on the same specification."""
        return {
            "jax": Contender(JAX, spec),
            "torch eager": self.torch(spec),
            "torch compiled": self.torch(spec, compiled=True),
        }

    def torch(self, spec: dict[str, Any], *, compiled: bool = False) -> Contender:
        """A PyTorch contender."""
        return Contender(TORCH, {**spec, "compile": compiled}, self.torch_python, eager=not compiled)


def _columns(timing: Timing) -> Row:
    return {
        "ms": 1e3 * timing.median_s,
        "low ms": 1e3 * timing.low_s,
        "high ms": 1e3 * timing.high_s,
        "first call s": timing.first_s,
        "peak MiB": timing.peak_bytes / 2**20,
    }


MEMORY_NOTE = (
    "ms: median of all timed calls; low and high: smallest and largest median of a round. First call: includes "
    "compilation. Peak: growth of the process on a CPU (the compiler's memory included), device memory otherwise."
)


def train(config: RunConfig, weights: Path, plan: Plan, batch_sizes: Sequence[int]) -> Table:
    """Whole optimizer steps: forward, backward, clipping, AdamW."""
    rows = []
    for batch in batch_sizes:
        changed = config.replace(data=config.data.replace(batch_size=batch))
        changed.validate()
        spec = {"kind": "train", "config": changed.to_dict(), "weights": str(weights), "policy": _policy(config)}
        for name, timing in plan.time(plan.both(spec)).items():
            tokens = batch * config.data.seq_len
            speed = {"tokens/s": tokens / timing.median_s}
            rows.append({"contender": name, "batch": batch, "tokens": tokens, **speed, **_columns(timing)})
    return rows, [MEMORY_NOTE]


def decode(config: RunConfig, weights: Path, plan: Plan, batch_sizes: Sequence[int]) -> Table:
    """Greedy decoding of half the longest sequence after a prompt of a quarter of it."""
    rows = []
    lengths = {"prompt": max(1, config.model.max_len // 4), "tokens": max(1, config.model.max_len // 2)}
    for batch in batch_sizes:
        spec = {"kind": "decode", "batch": batch, **lengths, "weights": str(weights), "policy": _policy(config)}
        for name, timing in plan.time(plan.both(spec)).items():
            speed = {"tokens/s": batch * lengths["tokens"] / timing.median_s}
            rows.append({"contender": name, "batch": batch, **lengths, **speed, **_columns(timing)})
    return rows, [MEMORY_NOTE]


def scan(plan: Plan, times: Sequence[int], *, batch: int, width: int, chunk: int) -> Table:
    """The diagonal recurrence, value and gradients, against the original's loop and the memory-bandwidth floor.

    The floor moves five arrays of (B, T, D): the input read and the output written, then input and cotangent
    read and the gradient written, at the bandwidth that a triad on arrays of that size reaches.
    """
    rows, forms = [], ("sequential", "associative", "chunked")
    for time in times:
        spec = {"kind": "scan", "batch": batch, "time": time, "width": width, "chunk": chunk}
        contenders = {"triad": Contender(JAX, {"kind": "triad", "size": batch * time * width})}
        for form in forms:
            contenders[f"jax {form}"] = Contender(JAX, {**spec, "form": form})
        for form in forms:
            contenders[f"torch {form}"] = plan.torch({**spec, "form": form})
        for form in forms:
            contenders[f"torch compiled {form}"] = plan.torch({**spec, "form": form}, compiled=True)
        contenders["original loop"] = plan.torch({**spec, "form": "original loop"})
        timings = plan.time(contenders)
        floor_s = timings.pop("triad").median_s * 5 / 3
        rows.append({"contender": "floor", "T": time, "ms": 1e3 * floor_s, "over floor": 1.0})
        loop = timings.get("original loop")
        for name, timing in timings.items():
            row = {"contender": name, "T": time, **_columns(timing), "over floor": timing.median_s / floor_s}
            rows.append(row | ({"loop over it": loop.median_s / timing.median_s} if loop else {}))
    return rows, [
        MEMORY_NOTE,
        f"B = {batch}, D = {width}, chunks of {chunk}, float32. Floor: five arrays of (B, T, D) at the bandwidth of a "
        "triad on the same machine. An eager contender slower than 20 s is timed once.",
    ]


def compilation(config: RunConfig, plan: Plan, depths: Sequence[int]) -> Table:
    """Tracing and compiling a whole training step, by depth, with layers scanned and unrolled."""
    contenders = {}
    for layers in ("scan", "unroll"):
        for depth in depths:
            model = config.model.replace(layers=depth, execution=config.model.execution.replace(layers=layers))
            spec = {"kind": "compile", "config": config.replace(model=model).to_dict()}
            contenders[f"{layers} {depth}"] = Contender(JAX, spec)
    timings = alternate(contenders, rounds=plan.rounds, calls=1)
    rows = []
    for name, timing in timings.items():
        layers, depth = name.split()
        seconds = {"s": timing.median_s, "low s": timing.low_s, "high s": timing.high_s}
        rows.append({"layers": layers, "depth": int(depth), **seconds})
    return rows, ["Seconds to trace and compile one training step; no compilation cache."]


def _policy(config: RunConfig) -> str:
    return config.model.execution.policy
