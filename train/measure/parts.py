"""Measured time of a model by part: each compiled alone and run in turns, beside the whole step."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mhc_jax
from mhc_jax import decode
from mhc_jax.accounting import Summary, summary
from mhc_jax.functional import Params, bind, param_info, param_shapes, precision
from mhc_jax.nn.model import ModelConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.ops.loss import chunked_cross_entropy
from mhc_jax.precision import policy
from mhc_jax.tree import flatten, unflatten
from train.config import RunConfig
from train.measure.turns import Step, take_turns
from train.update.optimizer import make_optimizer
from train.update.state import trained_info
from train.update.step import init_state, make_train_step

Row = dict[str, Any]

HEAD, OPTIMIZER, OTHER, WHOLE = "head and loss", "optimizer", "other", "whole"
# Turns of every part, and decoding steps in a turn.
ROUNDS, DECODED = 5, 10
# Arrays of a batch that hold tokens.
TOKENS = ("inputs", "targets")


@dataclasses.dataclass(frozen=True)
class Profile:
    """Time by part.

    Attributes:
        device: its kind.
        batch, length: rows and tokens of a batch.
        cache: tokens that the cache of a decoding step has room for; None for a model that cannot decode.
        rows: a table: a row for each part, their sum, and the whole.
        memory: a table of bytes.
    """

    device: str
    batch: int
    length: int
    cache: int | None
    rows: list[Row]
    memory: list[Row]

    @property
    def note(self) -> str:
        """What was measured, in a few sentences."""
        decoding = "" if self.cache is None else f" A decoding step has one row and a cache of {self.cache:,} tokens."
        return (
            f"Medians of {ROUNDS} turns on one device ({self.device}), with random tokens. A training step has "
            f"{self.batch} x {self.length:,} tokens.{decoding} Every part is compiled alone, in training with "
            "its backward pass; the whole saves what the compiler fuses and what each call costs, and adds norms of "
            "gradients and the check that they are finite."
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return dataclasses.asdict(self)


def counts(of_model: Summary, pieces: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[int, int]]:
    """Parameters and forward operations of a token by part, by the model's accounting; they add up to the model's.

    Args:
        pieces: the beginnings of their parameters' names, by name of the part.
    """
    owners = {prefix: name for name, prefixes in pieces.items() for prefix in prefixes} | {"head": HEAD}
    found = dict.fromkeys([*pieces, HEAD, OTHER], (0, 0))
    for part in of_model.parts:
        owner = next((name for prefix, name in owners.items() if part.name.startswith(prefix)), OTHER)
        parameters, flops = found[owner]
        found[owner] = parameters + part.parameters, flops + part.flops
    return found


def measure(config: RunConfig, params: Params, length: int | None = None) -> Profile:
    """Time of a training step and of a decoding step by part, on one device; random tokens.

    Args:
        length: tokens that the cache has room for; ``config.model.max_len`` if omitted.
    """
    model, data = config.model, config.data
    length = length or model.max_len
    rows = data.batch_size // config.train.accumulate
    tokens = jax.random.randint(jax.random.key(0), (rows, data.seq_len), 0, model.vocab_size, jnp.int32)
    pieces = _pieces(model)
    training = {name: _training(model, params, name, owned, tokens) for name, owned in pieces.items()}
    training[HEAD] = _head_training(config, params, tokens)
    whole, scratch = _whole_training(config)
    trained = _medians({**training, OPTIMIZER: _optimizer(config, params), WHOLE: whole}, calls=1)
    for name in training:
        trained[name] *= config.train.accumulate
    decoding = {}
    if model.causal:
        decoding = {name: _decoding(model, params, name, owned, length) for name, owned in pieces.items()}
        decoding |= {HEAD: _head_decoding(model, params), WHOLE: whole_decoding(model, params, length)}
    of_model, cache = summary(model, data.seq_len), length if decoding else None
    return Profile(
        jax.devices()[0].device_kind,
        data.batch_size,
        data.seq_len,
        cache,
        _rows(counts(of_model, pieces), trained, _medians(decoding, calls=DECODED)),
        _memory(config, scratch, cache),
    )


def _rows(
    counted: Mapping[str, tuple[int, int]], trained: Mapping[str, float], decoded: Mapping[str, float]
) -> list[Row]:
    def row(name: str, parameters: int | None, flops: int | None, step: float | None, token: float | None) -> Row:
        found = {"part": name, "parameters": parameters, "MFLOP a token": None if flops is None else flops / 1e6}
        found["ms a step"] = None if step is None else 1e3 * step
        return found | ({"us a token": None if token is None else 1e6 * token} if decoded else {})

    names = [name for name in (*counted, OPTIMIZER) if name in trained or any(counted[name])]
    parts = [row(name, *counted.get(name, (None, None)), trained.get(name), decoded.get(name)) for name in names]
    sums = [sum(values) for values in zip(*counted.values())]
    times = [sum(value for name, value in of_parts.items() if name != WHOLE) for of_parts in (trained, decoded)]
    return [*parts, row("sum of the parts", *sums, *times), row(WHOLE, None, None, trained[WHOLE], decoded.get(WHOLE))]


def _memory(config: RunConfig, scratch: float | None, cache: int | None) -> list[Row]:
    state = jax.eval_shape(lambda: init_state(config, make_optimizer(config.optim, 1, trained_info(config))))
    bytes_ = {"parameters": _bytes(state.params), "optimizer state": _bytes((state.opt_state, state.ema))}
    bytes_["temporaries of a training step"] = scratch
    if cache is not None:
        bytes_[f"decoding state of one row, {cache:,} tokens"] = state_bytes(config.model, cache)
    return [{"memory": name, "KiB": None if size is None else size / 2**10} for name, size in bytes_.items()]


def state_bytes(model: ModelConfig, length: int) -> int:
    """Bytes of the decoding state of one row of at most ``length`` tokens; nothing is allocated."""
    shapes = jax.eval_shape(lambda params: bind(model, params).init_state(1, length), param_shapes(model))
    return _bytes(shapes)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _medians(steps: Mapping[str, Step], *, calls: int) -> dict[str, float]:
    """Seconds of a call."""
    seconds = take_turns(steps, rounds=ROUNDS, calls=calls)
    return {name: float(np.median(np.concatenate(rounds))) for name, rounds in seconds.items()}


def _pieces(model: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Beginnings of their parameters' names, by name of the piece."""
    found = {}

    def look(params: Params) -> None:
        found.update({name: piece.parameters for name, piece in bind(model, params).pieces().items()})

    jax.eval_shape(look, param_shapes(model))
    return found


def _owned(params: Params, prefixes: Sequence[str]) -> dict[str, jax.Array]:
    """The parameters with those beginnings, by dotted name."""
    return {name: x for name, x in flatten(params).items() if name.startswith(tuple(f"{x}." for x in prefixes))}


def _bound(model: ModelConfig, owned: Mapping[str, jax.Array]) -> Any:
    """The module with these parameters; any others, which a part must not need, are NaN."""
    shapes = flatten(param_shapes(model))
    missing = {name: jnp.full(x.shape, jnp.nan, x.dtype) for name, x in shapes.items() if name not in owned}
    return bind(model, unflatten({name: owned[name] if name in owned else missing[name] for name in shapes}))


def _given(model: ModelConfig, params: Params, name: str, tokens_BT: jax.Array, scope: Scope) -> Any:
    with precision(model):
        return jax.jit(lambda params: bind(model, params).pieces()[name].given(tokens_BT, scope))(params)


def _ready(call: Callable, *arguments: Any) -> Step:
    """A step that runs a compiled function; it has run once."""

    def step():
        jax.block_until_ready(call(*arguments))

    step()
    return step


def _carried(call: Callable[[Any], Any], carry: Any) -> Step:
    """A step that runs a compiled function on its own last result, which it donates; it has run once."""

    def step():
        nonlocal carry
        carry = jax.block_until_ready(call(carry))

    step()
    return step


def _training(model: ModelConfig, params: Params, name: str, prefixes: Sequence[str], tokens_BT: jax.Array) -> Step:
    """Forward and backward pass of a piece, by its parameters and its input, its output as the cotangent."""
    scope = Scope.over(tokens_BT.shape[1], key=jax.random.key(1))
    x = _given(model, params, name, tokens_BT, scope)

    def forward(owned, x):
        inside = scope.replace(penalties={})
        with precision(model):
            y, _ = _bound(model, owned).pieces()[name].run(x, None, inside)
        return y, inside.mean_penalties()

    def both(owned, x):
        if any(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(x)):
            y, pull = jax.vjp(lambda owned: forward(owned, x), owned)
        else:
            y, pull = jax.vjp(forward, owned, x)
        return pull(y)

    return _ready(jax.jit(both), _owned(params, prefixes), x)


def _head_training(config: RunConfig, params: Params, tokens_BT: jax.Array) -> Step:
    """Loss and its gradient by the head and its input, in chunks as in training."""
    model, dtypes = config.model, policy(config.model.execution.policy)
    head_VD = jax.jit(lambda params: bind(model, params).head_VD())(params)
    hidden_BTD = jax.random.normal(jax.random.key(2), (*tokens_BT.shape, head_VD.shape[1])).astype(dtypes.compute)

    def loss(hidden_BTD, head_VD):
        options = {"chunk": config.objective.chunk, "logits_dtype": dtypes.accumulate}
        options["implementation"] = getattr(config.objective, "implementation", "xla")
        with precision(model):
            return chunked_cross_entropy(hidden_BTD, head_VD, tokens_BT, **options)[0]

    return _ready(jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), hidden_BTD, head_VD)


def _optimizer(config: RunConfig, params: Params) -> Step:
    optimizer = make_optimizer(config.optim, 1, param_info(config.model))

    def update(grads, carry):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    call = jax.jit(update, donate_argnums=1)
    return _carried(lambda carry: call(params, carry), (jax.tree.map(jnp.copy, params), optimizer.init(params)))


def _whole_training(config: RunConfig) -> tuple[Step, float | None]:
    """A whole training step, and the bytes of its temporaries where the compiler says."""
    optimizer = make_optimizer(config.optim, 1, trained_info(config))
    state = jax.jit(lambda: init_state(config, optimizer))()
    batch = {
        name: jax.random.randint(jax.random.key(0), shape, 0, config.model.vocab_size if name in TOKENS else 1)
        for name, shape in config.data.arrays().items()
    }
    taught = config.objective.teacher
    teacher = None if taught is None else mhc_jax.init(taught.known, jax.random.key(0))
    step = jax.jit(make_train_step(config, optimizer), donate_argnums=0).lower(state, batch, teacher).compile()
    memory = step.memory_analysis()
    return _carried(lambda state: step(state, batch, teacher)[0], state), memory and memory.temp_size_in_bytes


def _decoding(model: ModelConfig, params: Params, name: str, prefixes: Sequence[str], length: int) -> Step:
    """A piece on one token, the last one that the cache has room for."""
    token_BT, column = jnp.ones((1, 1), jnp.int32), length - 1
    scope = Scope(jnp.full((1, 1), column), column=column)
    x, owned = _given(model, params, name, token_BT, scope), _owned(params, prefixes)

    def run(states, owned, x):
        piece = _bound(model, owned).pieces()[name]
        with precision(model):
            y, states = piece.run(x, states if piece.remembers else None, scope)
        return states, y

    states = bind(model, params).init_state(1, length)
    call = jax.jit(run, donate_argnums=0)
    return _carried(lambda carry: call(carry[0], owned, x), (states, None))


def _head_decoding(model: ModelConfig, params: Params) -> Step:
    head_VD = jax.jit(lambda params: bind(model, params).head_VD())(params)
    hidden_BTD = jnp.ones((1, 1, head_VD.shape[1]), policy(model.execution.policy).accumulate)

    def logits(params, hidden_BTD):
        with precision(model):
            return bind(model, params).logits(hidden_BTD)

    return _ready(jax.jit(logits), params, hidden_BTD)


def whole_decoding(model: ModelConfig, params: Params, length: int) -> Step:
    """A decoding step of one row, whose token is the last one that the cache has room for. It has run once."""
    token_BT, cache = jnp.ones((1, 1), jnp.int32), decode.init_cache(model, params, 1, max_len=length)

    cache["column"] += length - 1

    def advance(carry, params, cache):
        logits_BTV, after = decode.extend(model, params, token_BT, {**cache, "state": carry[0]})
        return after["state"], logits_BTV

    call = jax.jit(advance, donate_argnums=0)
    state = cache.pop("state")
    return _carried(lambda carry: call(carry, params, cache), (state, None))
