"""Time and memory of greedy decoding against position: one text, one compiled step for each token.

Every contender has random weights. The logits of the very steps that are timed are first compared with a pass over the
whole text, and what disagrees is not timed.
"""

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

import mhc_jax
from mhc_jax import decode
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params, parameter_count
from mhc_jax.nn.model import ModelConfig
from train.benchmark.cases import Row, Table
from train.benchmark.models import contenders
from train.checks.decoding import ROUNDING
from train.checks.subject import relative
from train.config import RunConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Tokens whose logits are compared, and how far they may be off in narrow floating point, over their root mean square.
CHECKED, NARROW = 256, 0.1
# Tokens of one contender before the next has its turn.
TURN = 32
# Positions from which on the speed is averaged up to the end, as chunks of a scan may be long.
SINCE = (32, 64, 128, 256)
# The least capacity of a cache that grows.
SMALLEST = 32


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is decoded.

    Attributes:
        prompt: tokens that are there before the first timed one.
        tokens: timed tokens.
        piece: tokens of the prompt that are read at once.
        bucket: positions that are one row of the table.
    """

    prompt: int
    tokens: int
    piece: int
    bucket: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}")

    @property
    def length(self) -> int:
        """Tokens of the whole text."""
        return self.prompt + self.tokens

    @property
    def pieces(self) -> list[int]:
        """Lengths of the pieces of the prompt."""
        whole, rest = divmod(self.prompt, self.piece)
        return [self.piece] * whole + [rest] * bool(rest)

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """The first and the last position of each bucket, whose borders are multiples of its size."""
        inner = range(self.prompt // self.bucket * self.bucket + self.bucket, self.length, self.bucket)
        borders = [self.prompt, *inner, self.length]
        return list(itertools.pairwise(borders))


class Stream:
    """A model, a text that it reads from the first token on, and the cache behind it.

    Args:
        config, params: the model.
        grows: whether the cache begins small and doubles when it is full; otherwise it has ``config.max_len`` tokens.
    """

    def __init__(self, config: ModelConfig, params: Params, *, grows: bool = False):
        self._config, self._params, self._grows = config, params, grows
        self._steps: dict[tuple[int, int], jax.stages.Compiled] = {}
        self._widen = jax.jit(functools.partial(_widened, config, params), static_argnums=1)
        self.restart()

    def restart(self) -> None:
        """Forgets the text."""
        self.position, self.capacity = 0, self._config.max_len
        if self._grows:
            self.capacity = min(SMALLEST, self.capacity)
        self._cache = decode.init_cache(self._config, self._params, 1, max_len=self.capacity)

    def prepare(self) -> None:
        """Reads one token with a cache of every capacity, so that nothing is done for the first time later."""
        self.restart()
        self.read(jnp.zeros((1, 1), jnp.int32))
        while self.capacity < self._config.max_len:
            self.position = self.capacity  # full
            self.read(jnp.zeros((1, 1), jnp.int32))

    def read(self, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The logits (1, T, V) of the next tokens and the likeliest token (1, 1) after them, both ready."""
        end = self.position + tokens_BT.shape[1]
        while end > self.capacity:
            self.capacity = min(2 * self.capacity, self._config.max_len)
            self._cache = self._widen(self._cache, self.capacity)
        step = self._step(tokens_BT)
        logits_BTV, token_B1, self._cache = jax.block_until_ready(step(self._params, tokens_BT, self._cache))
        self.position = end
        return logits_BTV, token_B1

    def _step(self, tokens_BT: jax.Array) -> jax.stages.Compiled:
        key = tokens_BT.shape[1], self.capacity
        if key not in self._steps:
            advance = jax.jit(functools.partial(_advanced, self._config), donate_argnums=2)
            self._steps[key] = advance.lower(self._params, tokens_BT, self._cache).compile()
        return self._steps[key]

    @property
    def state_bytes(self) -> int:
        """Bytes of the cache."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._cache["state"]))

    @property
    def scratch_bytes(self) -> int | None:
        """Bytes that the step of one token needs beside parameters and cache; None if the compiler does not say."""
        memory = self._steps[1, self.capacity].memory_analysis()
        return memory and memory.temp_size_in_bytes


def _advanced(config: ModelConfig, params: Params, tokens_BT: jax.Array, cache: decode.Cache):
    logits_BTV, cache = decode.extend(config, params, tokens_BT, cache)
    return logits_BTV, jnp.argmax(logits_BTV[:, -1:], axis=-1).astype(jnp.int32), cache


def _widened(config: ModelConfig, params: Params, cache: decode.Cache, capacity: int) -> decode.Cache:
    """The same cache with room for more: what a larger one begins with, and in front of it what is there."""
    wider = decode.init_cache(config, params, 1, max_len=capacity)
    state = jax.tree.map(
        lambda new, old: jax.lax.dynamic_update_slice(new, old, (0,) * old.ndim), wider["state"], cache["state"]
    )
    return wider | {"state": state, "column": cache["column"]}


def table(config: RunConfig, others: Sequence[str], plan: Plan) -> Table:
    """Seconds of single tokens by position, the contenders in turns.

    Args:
        config: the named run, whose model is the first contender.
        others: see :func:`train.benchmark.models.contenders`.

    Raises:
        ConfigError: see there, a model that does not predict the next token, or none whose steps agree with a pass.
    """
    length = plan.length
    run = config.replace(
        model=config.model.replace(max_len=length),
        data=config.data.replace(seq_len=min(config.data.seq_len, length)),
    )
    configs = {label: each.model for label, each in contenders(run, others).items()}
    for model in configs.values():
        model.check_next_token()
    streams, notes = {}, []
    text = jax.random.randint(jax.random.key(1), (1, length), 0, run.model.vocab_size, jnp.int32)
    for label, model in configs.items():
        params = mhc_jax.init(model, jax.random.key(run.train.seed))
        forms = {label: False} if decode.goes_on(model, params) else {label: False, f"{label}, growing": True}
        for name, grows in forms.items():
            stream = Stream(model, params, grows=grows)
            off, limit = off_a_whole_pass(stream, model, params, text, plan), limit_of(model)
            print(f"{name}: cached logits off by {off:.1e} of their size", file=sys.stderr, flush=True)
            if off <= limit:
                streams[name] = stream
            else:
                notes.append(f"{name} is not timed: its cached logits are off those of a whole pass by {off:.1e}.")
    if not streams:
        raise ConfigError(" ".join(notes))
    seconds, sizes = timed(streams, text, plan)
    return rows(seconds, sizes, plan), [speeds(seconds, plan), _note(configs, run, plan), *notes]


def limit_of(model: ModelConfig) -> float:
    """How far cached logits may be off, over their root mean square."""
    return ROUNDING if model.execution.policy in ("float32", "float64") else NARROW


def off_a_whole_pass(stream: Stream, model: ModelConfig, params: Params, text: jax.Array, plan: Plan) -> float:
    """The largest difference of the first :data:`CHECKED` logits from one pass, over their root mean square."""
    stream.restart()
    checked = min(CHECKED, plan.length)
    ends = np.cumsum([*plan.pieces, *[1] * plan.tokens])
    starts = [start for start in [0, *ends[:-1]] if start < checked]
    found = [stream.read(text[:, start:end])[0] for start, end in zip(starts, ends)]
    found = np.concatenate(found, axis=1, dtype=np.float64)[:, :checked]
    whole = jax.jit(lambda params, tokens_BT: mhc_jax.apply(model, params, tokens_BT).logits_BTV)
    return relative(found, np.asarray(whole(params, text[:, : found.shape[1]]), np.float64))


def timed(
    streams: Mapping[str, Stream], text: jax.Array, plan: Plan
) -> tuple[dict[str, list[float]], dict[str, list[tuple[int, int | None]]]]:
    """Seconds of every token by contender, and by contender and bucket the bytes of its cache and its scratch."""
    seconds, sizes = {name: [] for name in streams}, {name: [] for name in streams}
    for stream in streams.values():
        stream.prepare()
    token = {name: _prompted(stream, text, plan) for name, stream in streams.items()}
    for first, last in plan.buckets:
        for turn, begin in enumerate(range(first, last, TURN)):
            for name in list(streams)[:: -1 if turn % 2 else 1]:
                for _ in range(begin, min(begin + TURN, last)):
                    start = time.perf_counter()
                    _, token[name] = streams[name].read(token[name])
                    seconds[name].append(time.perf_counter() - start)
        for name, stream in streams.items():
            sizes[name].append((stream.state_bytes, stream.scratch_bytes))
        print(f"{last - plan.prompt} of {plan.tokens} tokens", file=sys.stderr, flush=True)
    return seconds, sizes


def _prompted(stream: Stream, text: jax.Array, plan: Plan) -> jax.Array:
    """The likeliest token after the prompt."""
    stream.restart()
    for size in plan.pieces:
        _, token_B1 = stream.read(text[:, stream.position : stream.position + size])
    return token_B1


def rows(
    seconds: Mapping[str, Sequence[float]], sizes: Mapping[str, Sequence[tuple[int, int | None]]], plan: Plan
) -> list[Row]:
    """One row for each bucket and contender: milliseconds of a token, KiB of cache and of all but parameters."""
    found = []
    for index, (first, last) in enumerate(plan.buckets):
        for name, taken in seconds.items():
            part = 1e3 * np.array(taken[first - plan.prompt : last - plan.prompt])
            state, scratch = sizes[name][index]
            found.append(
                {
                    "model": name,
                    "positions": f"{first}-{last - 1}",
                    "median": float(np.median(part)),
                    "mean": float(part.mean()),
                    "p99": float(np.percentile(part, 99)),
                    "state": state / 2**10,
                    "peak": None if scratch is None else (state + scratch) / 2**10,
                }
            )
    return found


def speeds(seconds: Mapping[str, Sequence[float]], plan: Plan) -> str:
    """Tokens per second from each position of :data:`SINCE` up to the end, as a sentence."""
    since = [start for start in SINCE if plan.prompt <= start < plan.length] or [plan.prompt]
    by_model = {
        name: ", ".join(f"{1 / np.mean(taken[start - plan.prompt :]):,.0f}" for start in since)
        for name, taken in seconds.items()
    }
    starts = ", ".join(map(str, since))
    return f"Tokens/s from position {starts} on: {'; '.join(f'{name}: {found}' for name, found in by_model.items())}."


def _note(configs: Mapping[str, ModelConfig], run: RunConfig, plan: Plan) -> str:
    models = "; ".join(
        f"{label}: {model.layers} layers of width {model.width}, {parameter_count(model):,} parameters"
        for label, model in configs.items()
    )
    return (
        f"Greedy decoding of one text on {jax.devices()[0].device_kind}, random weights, {run.model.execution.policy}, "
        f"vocabulary {run.model.vocab_size}: a prompt of {plan.prompt} tokens in pieces of {plan.piece}, then "
        f"{plan.tokens} tokens one by one, in turns of {TURN}. {models}. median, mean, p99: "
        "milliseconds of one token, from the call of the compiled step to its ready result. state: KiB of the cache, "
        "which has room for all positions, or is growing: twice as long whenever it is full, whose cost is in the "
        "token that does not fit. peak: KiB of all that the step needs but the parameters. The logits of the first "
        f"{min(CHECKED, plan.length)} tokens were compared with a whole pass before."
    )


def draw(found: Sequence[Row]) -> "Figure":
    """Median (line) and mean (dots) time of a token, and the bytes of the cache, against position."""
    from train.report import figures

    figure = figures.new_figure(10, 4)
    times, state = figure.subplots(1, 2)
    by_model: dict[str, list[Row]] = {}
    for row in found:
        by_model.setdefault(row["model"], []).append(row)
    for index, (name, mine) in enumerate(by_model.items()):
        colour = f"C{index % 10}"
        middle = [np.mean([int(end) for end in row["positions"].split("-")]) for row in mine]
        times.plot(middle, [row["median"] / 1e3 for row in mine], color=colour, marker="o", markersize=3, label=name)
        times.plot(middle, [row["mean"] / 1e3 for row in mine], color=colour, linestyle="dotted")
        state.plot(middle, [row["state"] * 2**10 for row in mine], color=colour, marker="o", markersize=3)
    times.set(xlabel="position", ylabel="seconds per token, mean dotted", ylim=(0, None))
    times.legend()
    state.set(xlabel="position", ylabel="bytes of the cache", yscale="log")
    for axes in (times, state):
        axes.xaxis.set_major_formatter(figures.COUNTS)
    return figure
