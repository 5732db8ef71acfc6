"""Sinkhorn's iterations for many small matrices, such as those of all tokens, in one kernel.

On GPUs it is :mod:`mhc_jax.kernels.sinkhorn_gpu`. On TPUs one entry of :data:`TILE` matrices fills a register, so that
sums over rows and columns are sums of registers, and what lies between two iterations never leaves the core. On a CPU
the kernels of TPUs are interpreted, which is slow.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec, Sharding
from jaxtyping import Array, Float

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError
from mhc_jax.kernels import sinkhorn_gpu
from mhc_jax.kernels.derivatives import not_differentiable
from mhc_jax.kernels.interpretation import is_interpreted
from mhc_jax.kernels.sharding import axes, by_device
from mhc_jax.ops.sinkhorn import ORDERS, HalfSteps

SUBLANES, LANES = 8, 128
TILE = SUBLANES * LANES
MEMORY = 10 * 2**20


def fault(streams: int, iters: int, target: str | None) -> str | None:
    """Why that platform has no kernel for such matrices, and what to do; None if it has one.

    Args:
        target: the platform, or None while it is not known, for what no platform takes.
    """
    most = MEMORY // (4 * TILE * streams**2)
    if target in ("gpu", None) or iters <= most:
        return None
    return (
        f"kernels hold at most {most} iterations of {streams} x {streams} matrices, not {iters}; take fewer iters, "
        "or implementation 'xla'"
    )


def log_sinkhorn(
    logits_BTNN: Float[Array, "B T N N"],
    *,
    iters: int,
    order: Literal["columns_then_rows", "rows_then_columns"],
    batch_sharding: Sharding | None = None,
) -> Float[Array, "B T N N"]:
    """:func:`mhc_jax.ops.sinkhorn.log_sinkhorn` in either order, in float32; the backward pass repeats the iterations.

    Args:
        iters: at least 1.
        batch_sharding: sharding of arrays (B, ...) on several devices, each of which then does its own rows.

    Raises:
        ConfigError: there is no kernel for such matrices, see :func:`fault`.
    """
    if found := fault(logits_BTNN.shape[-1], iters, target_backend()):
        raise ConfigError(found)
    return _log_sinkhorn(logits_BTNN.astype(jnp.float32), iters, order, batch_sharding).astype(logits_BTNN.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _log_sinkhorn(logits_BTNN, iters, order, batch_sharding):
    half_steps = ORDERS[order]
    if target_backend() == "gpu":
        project = functools.partial(sinkhorn_gpu.project, iters=iters, half_steps=half_steps)
        return _by_rows(project, batch_sharding)(logits_BTNN)

    def kernel(z, p):
        p[...] = iterated(z[...], iters, half_steps)

    return _over_matrices(kernel, [logits_BTNN], iters, 0, batch_sharding)


def _forward(logits_BTNN, iters, order, batch_sharding):
    return _log_sinkhorn(logits_BTNN, iters, order, batch_sharding), logits_BTNN


def _backward(iters, order, batch_sharding, logits_BTNN, dp_BTNN):
    half_steps = ORDERS[order]
    if target_backend() == "gpu":
        pull = functools.partial(sinkhorn_gpu.pull, iters=iters, half_steps=half_steps)
        return (_by_rows(pull, batch_sharding, arrays=2)(logits_BTNN, dp_BTNN),)

    def kernel(z, dp, dz, inputs):
        dz[...] = pulled(z[...], dp[...], iters, half_steps, inputs)

    return (_over_matrices(kernel, [logits_BTNN, dp_BTNN], iters, max(1, iters - 1), batch_sharding),)


_log_sinkhorn.defvjp(_forward, _backward)


def iterated(z: jax.Array, iters: int, half_steps: HalfSteps) -> jax.Array:
    """All iterations in a kernel, on logits (N, N, ...) of matrices in the last axes."""
    return jax.lax.fori_loop(0, iters - 1, lambda _, p: half_steps.again(p), half_steps.on_logs(z))


def pulled(z: jax.Array, dp: jax.Array, iters: int, half_steps: HalfSteps, inputs: Any) -> jax.Array:
    """The cotangent of the logits in a kernel.

    Args:
        inputs: reference to memory for ``max(1, iters - 1)`` arrays like ``z``.
    """
    p, pull_logs = jax.vjp(half_steps.on_logs, z)

    def forth(k, p):
        inputs[k] = p
        return half_steps.again(p)

    def back(k, dp):
        _, pull = jax.vjp(half_steps.again, inputs[iters - 2 - k])
        return pull(dp)[0]

    jax.lax.fori_loop(0, iters - 1, forth, p)
    return pull_logs(jax.lax.fori_loop(0, iters - 1, back, dp))[0]


def _by_rows(run, batch_sharding, arrays=1):
    """``run`` of arrays (B, ...), on several devices of each one's own rows."""
    by_row = PartitionSpec(axes(batch_sharding)[0])
    return by_device(not_differentiable(run), batch_sharding, (by_row,) * arrays, by_row)


def _over_matrices(kernel, arrays, iters, kept, batch_sharding):
    """``kernel`` on tiles (N, N, 8, 128) of the matrices in ``arrays``, with memory for ``kept`` more such tiles."""
    run = functools.partial(_on_one_device, kernel, iters, kept)
    return _by_rows(run, batch_sharding, len(arrays))(*arrays)


def _on_one_device(kernel, iters, kept, *arrays):
    B, T, N, _ = arrays[0].shape
    tiles = max(1, pl.cdiv(B * T, TILE))

    def laid(x_BTNN):
        matrices = jnp.moveaxis(x_BTNN, (-2, -1), (0, 1)).reshape(N, N, B * T)
        matrices = jnp.pad(matrices, ((0, 0), (0, 0), (0, tiles * TILE - B * T)))
        return matrices.reshape(N, N, tiles * SUBLANES, LANES)

    shape = N, N, SUBLANES, LANES
    tile = pl.BlockSpec(shape, lambda i: (0, 0, i, 0))
    result = jax.ShapeDtypeStruct((N, N, tiles * SUBLANES, LANES), jnp.float32)
    passes = 1 + 2 * bool(kept)
    out = pl.pallas_call(
        kernel,
        grid=(tiles,),
        in_specs=[tile for _ in arrays],
        out_specs=tile,
        out_shape=result,
        scratch_shapes=[pltpu.VMEM((kept, *shape), jnp.float32)] if kept else [],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=pl.CostEstimate(
            flops=4 * passes * iters * result.size,
            bytes_accessed=4 * result.size * (len(arrays) + 1),
            transcendentals=passes * result.size,
        ),
        interpret=is_interpreted(),
    )(*map(laid, arrays))
    return jnp.moveaxis(out.reshape(N, N, tiles * TILE)[..., : B * T].reshape(N, N, B, T), (0, 1), (-2, -1))
