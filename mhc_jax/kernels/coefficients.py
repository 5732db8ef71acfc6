"""Sites whose coefficients come from the streams of the token, see :mod:`mhc_jax.kernels.streams`, in few kernels.

``weights = flat_weights(h, phi)``, ``logits = scale * weights + bias``, gates and Sinkhorn's iterations, and with these
coefficients the read. All of it and the write before are one kernel forward and one backward, :func:`read`, for
2 N + 2 and 3 N + 3 passes over an array (B, T, D), as many as with static coefficients; on a GPU the product that makes
phi's gradient takes N more. Coefficients alone, or where :func:`read` has no kernel, are one on a GPU, :func:`project`,
between a write and a read, for N passes and 4 N backward.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, Sharding
from jaxtyping import Array, Float

from mhc_jax.backend import target_backend
from mhc_jax.config import ConfigError
from mhc_jax.kernels import boundary_gpu, coefficients_gpu, coefficients_tpu, streams, tiles
from mhc_jax.kernels.derivatives import not_differentiable
from mhc_jax.kernels.gates import Gates, Params, Site
from mhc_jax.kernels.sharding import axes, by_device
from mhc_jax.kernels.streams import Mixed, Normalised, Pending
from mhc_jax.nn.deferred import computed
from mhc_jax.ops.streams import Streams

# More logits of a token, such as those of all permutations of five streams, do not fit the registers.
MOST_NUMBERS = 80


def can_read(state: Streams | Pending, phi_KM: jax.Array, norm: Normalised, gates: Gates) -> bool:
    """Whether :func:`read` has a kernel for these streams.

    Sequences shorter than a group of tokens, as in decoding, have none.
    """
    h, ys, _ = _parts(state)
    x = h.parts[0]
    if not _is_regular(x) or len(phi_KM) > MOST_NUMBERS:
        return False
    params = _params(phi_KM, phi_KM[:, 0], phi_KM[:, 0], norm)
    return _kernels().tile_of(h.parts, ys, jax.ShapeDtypeStruct(x.shape, norm.dtype), params, gates) > 0


def read(
    state: Streams | Pending,
    phi_KM: Float[Array, "K M"],
    scale_K: Float[Array, " K"],
    bias_K: Float[Array, " K"],
    gates: Gates,
    norm: Normalised,
    *,
    eps: float,
    batch_sharding: Sharding | None = None,
) -> tuple[Float[Array, "B T D"], Mixed, Float[Array, "B T N"]]:
    """What a site reads, normalised, the mixed streams, and the weights with which it will write.

    Args:
        state: the streams h, or what the site before has left to do.
        phi_KM: matrix of :func:`mhc_jax.ops.hyper.flat_weights`, with its ``eps``.
        scale_K, bias_K: of the logits.
        gates: whose numbers are the N reading weights, the N writing weights and the matrix.
        batch_sharding: sharding of arrays (B, ...) on several devices, each of which then does its own rows.

    Raises:
        ConfigError: there is no kernel for these streams, see :func:`can_read`.
    """
    if not can_read(state, phi_KM, norm, gates):
        raise ConfigError("no kernel computes the coefficients of such streams; take implementation 'xla'")
    h, ys, before = _parts(state)
    site, N = Site(phi_KM.shape[1], eps, norm.of, norm.dtype, gates), gates.streams
    found: Any = _read(site, batch_sharding, h, ys, before, _params(phi_KM, scale_K, bias_K, norm))
    u_BTD, after, numbers_BTC = found
    res_BTNN = numbers_BTC[..., 2 * N :].reshape(*numbers_BTC.shape[:-1], N, N)
    return u_BTD, Mixed(after, res_BTNN, batch_sharding), numbers_BTC[..., N : 2 * N]


def can_project(state: Streams | Pending, phi_KM: jax.Array) -> bool:
    """Whether :func:`project` has a kernel for these streams: tensor cores multiply those in bfloat16."""
    x = _parts(state)[0].parts[0]
    is_possible = x.dtype == jnp.bfloat16 and _is_regular(x) and len(phi_KM) <= MOST_NUMBERS
    return target_backend() == "gpu" and is_possible


def project(
    state: Streams | Pending,
    phi_KM: Float[Array, "K M"],
    scale_K: Float[Array, " K"],
    bias_K: Float[Array, " K"],
    gates: Gates,
    *,
    eps: float,
    batch_sharding: Sharding | None = None,
) -> tuple[Streams, Float[Array, "B T C"]]:
    """The streams, whose cotangent is then that of all that is made of them, and all coefficients.

    The arguments are those of :func:`read`.

    Raises:
        ConfigError: there is no kernel for these streams, see :func:`can_project`.
    """
    if not can_project(state, phi_KM):
        raise ConfigError("no kernel projects such streams to coefficients; take implementation 'xla'")
    params = tuple(x.astype(jnp.float32) for x in (phi_KM, scale_K, bias_K))
    found: Any = _project(gates, eps, batch_sharding, computed(state), params)
    return found


def _kernels() -> Any:
    """Those of the platform."""
    return boundary_gpu if target_backend() == "gpu" else coefficients_tpu


def _is_regular(x_BTD):
    return x_BTD.size > 0 and x_BTD.shape[1] >= tiles.GROUP and x_BTD.shape[2] % tiles.LANES == 0


def _parts(state):
    """Streams, what is written to them, and the matrix and the writing weights for that, side by side."""
    if not isinstance(state, Pending):
        return state, (), ()
    h, ys = state.mixed.h, streams.parts(state.y)
    # The matrix has its gradient from the read of its own site, see Mixed.
    joined = streams.Coefficients(jax.lax.stop_gradient(state.mixed.res_NN), state.post_N).joined()
    return h, ys, (jnp.broadcast_to(joined, (*h.batch_shape, joined.shape[-1])),)


def _params(phi_KM, scale_K, bias_K, norm):
    phi_KM, scale_K1, bias_K1 = (x.astype(jnp.float32) for x in (phi_KM, scale_K[:, None], bias_K[:, None]))
    return Params(phi_KM, scale_K1, bias_K1, streams.matrices(norm.params))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _read(site, batch_sharding, h, ys, before, params):
    return _forward(site, batch_sharding, h, ys, before, params)[0]


def _forward(site, batch_sharding, h, ys, before, params):
    """The streams after the write take the place of those that the read's matrix mixes."""
    by_row, shared = _specs(batch_sharding)
    run = not_differentiable(functools.partial(_kernels().forward, site))
    run = by_device(run, batch_sharding, (by_row, by_row, by_row, shared), by_row)
    rounded = params._replace(phi=params.phi.astype(h.dtype))  # as the factors of its product are
    after, u_BTD, sums_BTK, numbers_BTC = run(h.parts, ys, before, rounded)
    post = tuple(x[..., site.gates.streams**2 :] for x in before)
    return (u_BTD, Streams(tuple(after)), numbers_BTC), (after, ys, post, rounded, sums_BTK, numbers_BTC)


def _backward(site, batch_sharding, saved, cotangents):
    du_BTD, dm, dnumbers_BTC = cotangents
    by_row, shared = _specs(batch_sharding)

    @not_differentiable
    def run(*given):
        *found, dparams = _kernels().backward(site, *given)
        return *found, _over_rows(dparams, by_row)

    specs = *[by_row] * 3, shared, *[by_row] * 3
    run = by_device(run, batch_sharding, specs, (*[by_row] * 3, shared))
    dh, dys, dpost, dparams = run(*saved, (du_BTD, dm.parts, dnumbers_BTC))
    dbefore = tuple(jnp.pad(x, ((0, 0), (0, 0), (site.gates.streams**2, 0))) for x in dpost)
    return Streams(tuple(dh)), tuple(dys), dbefore, dparams


_read.defvjp(_forward, _backward)


def _specs(batch_sharding: Sharding | None):
    rows, _ = axes(batch_sharding)
    return PartitionSpec(rows), PartitionSpec()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _project(gates, eps, batch_sharding, h, params):
    return _project_forward(gates, eps, batch_sharding, h, params)[0]


def _project_forward(gates, eps, batch_sharding, h, params):
    by_row, shared = _specs(batch_sharding)

    @not_differentiable
    def run(h, params):
        phi_KM, scale_K, bias_K = params
        return coefficients_gpu.forward(h, phi_KM, scale_K, bias_K, gates, eps)

    kept, numbers_BTC = by_device(run, batch_sharding, (by_row, shared), by_row)(h.parts, params)
    return (h, numbers_BTC), (h.parts, params, kept)


def _project_backward(gates, eps, batch_sharding, saved, cotangents):
    dh, dnumbers_BTC = cotangents
    by_row, shared = _specs(batch_sharding)

    @not_differentiable
    def run(h, params, kept, dh, dnumbers):
        phi_KM, scale_K, bias_K = params
        found, *dparams = coefficients_gpu.backward(h, phi_KM, scale_K, bias_K, kept, dh, dnumbers, gates)
        return found, _over_rows(tuple(dparams), by_row)

    run = by_device(run, batch_sharding, (by_row, shared, *[by_row] * 3), (by_row, shared))
    found, dparams = run(*saved, dh.parts, dnumbers_BTC)
    return Streams(tuple(found)), dparams


_project.defvjp(_project_forward, _project_backward)


def _over_rows(sums, by_row):
    return jax.lax.psum(sums, by_row[0]) if by_row[0] else sums
