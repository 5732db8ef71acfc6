"""From the products of a token with phi to its coefficients and back, on GPUs: a thread has the numbers of a token.

Every number is an array with an entry for each token, as in :class:`mhc_jax.kernels.gates.Gates`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mhc_jax.kernels.gates import Gates
from mhc_jax.kernels.sinkhorn_gpu import again, lowered, on_logs, pulled


def numbers_of_token(
    gates: Gates, channels: int, eps: float, scale: Any, bias: Any, sums: Sequence[jax.Array], squares: jax.Array
) -> tuple[list[jax.Array], jax.Array, list[jax.Array]]:
    """The weights, the factor in them, and the coefficients, of arrays with an entry for each token.

    Args:
        channels: of all streams.
        scale, bias: K numbers, or a reference to them.
        sums: K products with phi.
        squares: sums of the channels' squares.
    """
    r = lax.rsqrt(squares / channels + eps)
    weights = [r * x for x in sums]
    found = lowered(gates.of, [scale[k] * x + bias[k] for k, x in enumerate(weights)])
    if gates.iters:
        begun = lowered(functools.partial(on_logs, gates.half_steps), found[2 * gates.streams :])
        matrix = lax.fori_loop(0, gates.iters - 1, lambda _, p: again(gates.half_steps, p), begun)
        found = [*found[: 2 * gates.streams], *matrix]
    return weights, r, found


def cotangents_of_token(
    gates: Gates,
    channels: int,
    scale: Any,
    bias: Any,
    kept: Callable[[], Sequence[jax.Array]],
    cotangents: Callable[[], Sequence[jax.Array]],
    inputs: Any,
) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """Cotangents of the logits, of the products with phi, and by what a channel loses its own value times.

    Args:
        kept: the weights and, behind them, the factor in them.
        cotangents: of the coefficients, perhaps with others behind them.
        inputs: reference to memory for those of Sinkhorn's iterations, by iteration and entry.
    """
    K = scale.shape[0]

    def logits():
        return [scale[k] * x + bias[k] for k, x in enumerate(kept()[:K])]

    dlogits = _logits_cotangents(gates, logits, lambda: cotangents()[: gates.count], inputs)
    *weights, r = kept()[: K + 1]
    dweights = [scale[k] * x for k, x in enumerate(dlogits)]
    total = functools.reduce(lax.add, [dw * w for dw, w in zip(dweights, weights, strict=True)])
    return dlogits, [r * dw for dw in dweights], r * r * total / channels


def cotangents_of_all(
    of_token: Callable[..., Any],
    gates: Gates,
    scale: jax.Array,
    bias: jax.Array,
    kept: jax.Array,
    cotangents: jax.Array,
) -> list[jax.Array]:
    """:func:`cotangents_of_token`, as ``of_token``, of arrays by token (T, ...), interpreted."""
    T, K = len(kept), len(scale)

    def kernel(scale, bias, kept, cotangents, dlogits, factors, of_x, inputs):
        taken = [functools.partial(list, ref[...].T) for ref in (kept, cotangents)]
        *found, of_x[...] = of_token(scale, bias, *taken, inputs)
        dlogits[...], factors[...] = (jnp.stack(x, axis=1) for x in found)

    sizes = (T, K), (T, K), (T,), (max(1, gates.iters - 1), gates.streams**2, T)
    run = pl.pallas_call(kernel, out_shape=[jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes], interpret=True)
    return run(scale, bias, kept, cotangents)[:-1]


def _logits_cotangents(gates, logits, cotangents, inputs):
    """Of two functions without arguments, which read where entries are used: registers do not hold them throughout."""
    if not gates.iters:
        return pulled(gates.of, logits(), cotangents())
    size, repeated = gates.streams**2, gates.iters - 1
    begin, further = (functools.partial(step, gates.half_steps) for step in (on_logs, again))

    def forth(k, p):
        for e, x in enumerate(p):
            inputs[k, e] = x
        return further(p)

    def back(k, dp):
        return pulled(further, [inputs[repeated - 1 - k, e] for e in range(size)], dp)

    lax.fori_loop(0, repeated, forth, lowered(begin, lowered(gates.of, logits())[-size:]))
    dp = lax.fori_loop(0, repeated, back, cotangents()[-size:])
    found = logits()
    dz = pulled(begin, lowered(gates.of, found)[-size:], dp)
    return pulled(gates.of, found, [*cotangents()[:-size], *dz])
