"""Losses as (sum, count): cross-entropy, z-loss and distillation, whole or chunked so that full logits never exist."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int

from mhc_jax.ops.chunks import Implementation
from mhc_jax.registry import unknown

IGNORE = -100


def cross_entropy(
    logits_BTV: Float[Array, "*B V"], targets_BT: Int[Array, "*B"], *, ignore: int = IGNORE
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed negative log likelihood in nats and the number of targets that count.

    The mean, ``sum / count``, is NaN when every target is ignored, as in PyTorch.
    """
    valid = targets_BT != ignore
    safe = jnp.where(valid, targets_BT, 0)
    losses = jnp.where(valid, jax.nn.logsumexp(logits_BTV, axis=-1) - _picked(logits_BTV, safe), 0)
    return jnp.sum(losses), jnp.sum(valid, dtype=losses.dtype)


def chunked_cross_entropy(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    *,
    chunk: int,
    logits_dtype: jnp.dtype = jnp.float32,
    implementation: Implementation = "xla",
    batch_sharding: Sharding | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """:func:`cross_entropy` of ``hidden @ head.T`` with at most (B, chunk, V) logits alive.

    Under differentiation each chunk's gradient is formed together with its loss, so nothing is
    recomputed and the head costs its three matrix products; the gradient of the logits is rounded
    to the dtype of ``hidden_BTD``, unless that is float16. The rule is a forward-mode one
    (an inner product with those gradients), hence forward, reverse and mixed modes all work.

    Args:
        hidden_BTD: input of the head. Chunks are cut along T, so a sharded batch axis stays sharded.
        head_VD: output embedding.
        targets_BT: token ids, or ``IGNORE``.
        chunk: tokens of each sequence in a chunk; T need not be a multiple.
        logits_dtype: dtype of logits, sums and loss.
        implementation: ``"xla"``, or ``"pallas"`` for kernels of TPUs that have no chunks, as logits exist in the core
            alone, see :mod:`mhc_jax.kernels.vocabulary`. They sum in float32, with first derivatives in reverse mode.
        batch_sharding: sharding of arrays (B, ...) on several devices, which only the kernels have to know.

    Raises:
        ValueError: an unknown implementation, or no kernel for this head.
    """
    if _is_by_kernel(implementation):
        entropy, _, count = _by_kernel(hidden_BTD, head_VD, targets_BT, batch_sharding)
        return entropy, count
    targets_BT, hidden_BTD = _padded(chunk, targets_BT, hidden_BTD)
    count = jnp.sum(targets_BT != IGNORE, dtype=logits_dtype)
    total, _ = _summed(_entropy_of_chunk, logits_dtype, chunk, targets_BT, (), hidden_BTD, head_VD)
    return total, count


def z_loss(logits_BTV: Float[Array, "*B V"], targets_BT: Int[Array, "*B"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed ``log(Z)^2`` where a target counts, and the number of such places; Z is the softmax's denominator.

    The auxiliary loss of PaLM (arXiv 2204.02311, section 5), with a weight of 1e-4: it keeps logits from drifting.
    """
    valid = targets_BT != IGNORE
    squares_BT = jnp.where(valid, jnp.square(jax.nn.logsumexp(logits_BTV, axis=-1)), 0)
    return jnp.sum(squares_BT), jnp.sum(valid, dtype=squares_BT.dtype)


def chunked_cross_entropy_and_z_loss(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    weight: Float[Array, ""] | float,
    *,
    chunk: int,
    logits_dtype: jnp.dtype = jnp.float32,
    implementation: Implementation = "xla",
    batch_sharding: Sharding | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Sum of :func:`cross_entropy` and the weighted :func:`z_loss`, at the price of :func:`chunked_cross_entropy`.

    Args:
        weight: of the z-loss, a constant of differentiation; the others are those of :func:`chunked_cross_entropy`.

    Returns:
        The weighted sum; the two sums, without weight or derivatives, to be reported; the number of targets.
    """
    if _is_by_kernel(implementation):
        entropy, squares, count = _by_kernel(hidden_BTD, head_VD, targets_BT, batch_sharding)
        reported = jax.lax.stop_gradient((entropy, squares))
        return entropy + jax.lax.stop_gradient(weight) * squares, *reported, count
    targets_BT, hidden_BTD = _padded(chunk, targets_BT, hidden_BTD)
    count = jnp.sum(targets_BT != IGNORE, dtype=logits_dtype)
    fixed = targets_BT, jax.lax.stop_gradient(jnp.asarray(weight, logits_dtype))
    total, (entropy, squares) = _summed(_z_loss_of_chunk, logits_dtype, chunk, *fixed, hidden_BTD, head_VD)
    return total, entropy, squares, count


def prefix_cross_entropy(
    prefixes_BNCD: Float[Array, "B N C D"],
    head_VCD: Float[Array, "V C D"],
    targets_BT: Int[Array, "B T"],
    *,
    logits_dtype: jnp.dtype | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """:func:`cross_entropy` of what precedes each chunk of C tokens, read from the chunk's prefix by a linear map.

    The target of chunk n is that of the token before it, ``targets_BT[:, n C - 1]``; the first chunk has none.
    """
    chunks, size = prefixes_BNCD.shape[1:3]
    targets_BN = targets_BT[:, size - 1 : (chunks - 1) * size : size]
    logits_BNV = jnp.einsum("bncd,vcd->bnv", prefixes_BNCD[:, 1:], head_VCD, preferred_element_type=logits_dtype)
    return cross_entropy(logits_BNV, targets_BN)


def kl_divergence(
    teacher_BTV: Float[Array, "*B V"],
    logits_BTV: Float[Array, "*B V"],
    targets_BT: Int[Array, "*B"],
    *,
    temperature: float = 1.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed ``temperature^2 KL(teacher || student)`` in nats where a target counts, and the number of such places.

    Both distributions are softmaxes of logits over the temperature; its square keeps the gradient's size (Hinton et
    al. 2015, section 2.1).
    """
    valid = targets_BT != IGNORE
    log_p, log_q = (jax.nn.log_softmax(x / temperature, axis=-1) for x in (teacher_BTV, logits_BTV))
    divergence_BT = jnp.where(valid, jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), 0)
    return temperature**2 * jnp.sum(divergence_BT), jnp.sum(valid, dtype=divergence_BT.dtype)


def chunked_distillation(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    teacher_BTE: Float[Array, "B T E"],
    teacher_head_VE: Float[Array, "V E"],
    targets_BT: Int[Array, "B T"],
    kl_weight: Float[Array, ""] | float,
    entropy_weight: Float[Array, ""] | float,
    *,
    temperature: float = 1.0,
    chunk: int,
    logits_dtype: jnp.dtype = jnp.float32,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of :func:`kl_divergence` and :func:`cross_entropy`, with (B, chunk, V) logits of each model alive.

    Differentiated as :func:`chunked_cross_entropy` is: the student's head costs its three matrix products, the
    teacher's one.

    Args:
        hidden_BTD, head_VD: the student's.
        teacher_BTE, teacher_head_VE: the teacher's, constants of differentiation.
        targets_BT: token ids, or ``IGNORE``.
        kl_weight, entropy_weight: constants of differentiation.
        temperature: of the divergence.
        chunk, logits_dtype: see :func:`chunked_cross_entropy`.

    Returns:
        The weighted sum; the two sums, without weights or derivatives, to be reported; the number of targets.
    """
    targets_BT, hidden_BTD, teacher_BTE = _padded(chunk, targets_BT, hidden_BTD, teacher_BTE)
    count = jnp.sum(targets_BT != IGNORE, dtype=logits_dtype)
    loss = partial(_distillation_of_chunk, temperature)
    weights = tuple(jnp.asarray(x, logits_dtype) for x in (kl_weight, entropy_weight))
    fixed = jax.lax.stop_gradient(((targets_BT, teacher_BTE), (teacher_head_VE, *weights)))
    total, (kl, entropy) = _summed(loss, logits_dtype, chunk, *fixed, hidden_BTD, head_VD)
    return total, kl, entropy, count


def state_distance(
    states_BTD: Float[Array, "*B D"], goals_BTD: Float[Array, "*B D"], targets_BT: Int[Array, "*B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed mean squares of differences where a target counts, and the number of such places."""
    valid = targets_BT != IGNORE
    squares_BT = jnp.where(valid, jnp.mean(jnp.square(states_BTD - goals_BTD), axis=-1), 0)
    return jnp.sum(squares_BT), jnp.sum(valid, dtype=squares_BT.dtype)


def published_distillation(
    logits_BTV: Float[Array, "B T V"],
    teacher_BTV: Float[Array, "B T V"],
    states_LBTD: Float[Array, "L B T D"],
    goals_LBTD: Float[Array, "L B T D"],
    targets_BT: Int[Array, "B T"],
    *,
    temperature: float = 2.0,
    weights: tuple[float, float, float] = (1.0, 0.5, 0.1),
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """The loss of SHC's published distillation: the weighted sum of its parts, then divergence, distance and entropy.

    The divergence is a sum over all places divided by the sequences, so its weight grows with their length; the
    distance compares states as they are, at all places; only the entropy leaves out places without a target.

    Args:
        states_LBTD, goals_LBTD: outputs of layers of the student, and of the teacher's that they are paired with.
        weights: of divergence, distance and entropy.
    """
    divergence = kl_divergence(teacher_BTV, logits_BTV, jnp.zeros_like(targets_BT), temperature=temperature)[0]
    divergence /= len(targets_BT)
    distance = jnp.mean(jnp.square(states_LBTD - goals_LBTD))
    total, count = cross_entropy(logits_BTV, targets_BT)
    parts = divergence, distance, total / count
    return sum(weight * part for weight, part in zip(weights, parts, strict=True)), *parts


@jax.custom_jvp
def _picked(logits_BTV, targets_BT):
    """The logits of the targets. Their derivative compares every place with the target: it fuses with the softmax,
    where the scatter that JAX makes of it passes over arrays as large as the logits."""
    return jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]


@_picked.defjvp
def _picked_jvp(primals, tangents):
    logits_BTV, targets_BT = primals
    chosen_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1])
    return _picked(logits_BTV, targets_BT), jnp.sum(chosen_BTV * tangents[0], axis=-1)


def _is_by_kernel(implementation):
    if implementation not in get_args(Implementation):
        raise ValueError(unknown("implementation", implementation, get_args(Implementation)))
    return implementation == "pallas"


def _by_kernel(hidden_BTD, head_VD, targets_BT, batch_sharding):
    """The sums of :func:`cross_entropy` and :func:`z_loss`, and the number of targets."""
    from mhc_jax.kernels.vocabulary import normalisers  # Pallas takes long to import

    valid = targets_BT != IGNORE
    lse_BT, picked_BT = normalisers(hidden_BTD, head_VD, targets_BT, batch_sharding=batch_sharding)
    losses = (jnp.where(valid, x_BT, 0) for x_BT in (lse_BT - picked_BT, jnp.square(lse_BT)))
    return *map(jnp.sum, losses), jnp.sum(valid, dtype=lse_BT.dtype)


def _logits(dtype, hidden_BKD, head_VD):
    return jnp.einsum("bkd,vd->bkv", hidden_BKD, head_VD, preferred_element_type=dtype)


def _entropy_of_chunk(targets_BK, _, logits_BKV):
    return cross_entropy(logits_BKV, targets_BK)[0], ()


def _z_loss_of_chunk(targets_BK, weight, logits_BKV):
    entropy, squares = (loss(logits_BKV, targets_BK)[0] for loss in (cross_entropy, z_loss))
    return entropy + weight * squares, (entropy, squares)


def _distillation_of_chunk(temperature, sliced, whole, logits_BKV):
    (targets_BK, teacher_BKE), (teacher_head_VE, kl_weight, entropy_weight) = sliced, whole
    teacher_BKV = _logits(logits_BKV.dtype, teacher_BKE, teacher_head_VE)
    kl, _ = kl_divergence(teacher_BKV, logits_BKV, targets_BK, temperature=temperature)
    entropy, _ = cross_entropy(logits_BKV, targets_BK)
    return kl_weight * kl + entropy_weight * entropy, (kl, entropy)


def _padded(chunk, targets_BT, *hidden):
    """With places that do not count, to a multiple of the chunk."""
    pad = -targets_BT.shape[1] % min(chunk, targets_BT.shape[1])
    targets_BT = jnp.pad(targets_BT, ((0, 0), (0, pad)), constant_values=IGNORE)
    return targets_BT, *(jnp.pad(x_BTD, ((0, 0), (0, pad), (0, 0))) for x_BTD in hidden)


def _to_chunks(chunk, tree):
    def cut(x):
        return jnp.swapaxes(x.reshape(x.shape[0], -1, min(chunk, x.shape[1]), *x.shape[2:]), 0, 1)

    return jax.tree.map(cut, tree)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _summed(loss: Callable[..., tuple[jax.Array, Any]], dtype, chunk: int, sliced, whole, hidden_BTD, head_VD):
    """Sums over chunks of ``loss(sliced, whole, logits)``: a scalar, and parts of it that are only reported.

    Args:
        dtype: of the logits.
        sliced: tree of arrays (B, T, ...), cut as ``hidden_BTD`` is; constants of differentiation.
        whole: tree of arrays that every chunk takes as they are, likewise.
    """

    def body(totals, inputs):
        some, hidden_BKD = inputs
        return jax.tree.map(jnp.add, totals, loss(some, whole, _logits(dtype, hidden_BKD, head_VD))), None

    chunks = _to_chunks(chunk, (sliced, hidden_BTD))
    return jax.lax.scan(body, _zeros(loss, dtype, chunks, whole, head_VD), chunks)[0]


def _zeros(loss, dtype, chunks, whole, head_VD):
    def first(chunks):
        some, hidden_BKD = jax.tree.map(lambda x: x[0], chunks)
        return loss(some, whole, _logits(dtype, hidden_BKD, head_VD))

    return jax.tree.map(lambda found: jnp.zeros(found.shape, found.dtype), jax.eval_shape(first, chunks))


def _outer(g_BKV, hidden_BKD, dtype):
    """The share of some tokens in the head's gradient, (V, D)."""
    if hidden_BKD.dtype != dtype:  # a CPU does not transpose the result of a product that widens 16 bits
        return jnp.einsum("bkv,bkd->vd", g_BKV, hidden_BKD, preferred_element_type=dtype)
    # It transposes the left factor, which is to be the small one.
    return jnp.einsum("bkd,bkv->dv", hidden_BKD, g_BKV, preferred_element_type=dtype).T


@_summed.defjvp
def _summed_jvp(loss, dtype, chunk, primals, tangents):
    sliced, whole, hidden_BTD, head_VD = primals
    # Of the logits, in the dtype of the products, unless small probabilities would be lost in it, as in float16.
    narrow = hidden_BTD.dtype if jnp.finfo(hidden_BTD.dtype).nexp >= jnp.finfo(dtype).nexp else dtype

    def body(carry, inputs):
        totals, g_head_VD = carry
        some, hidden_BKD = inputs
        logits_BKV = _logits(dtype, hidden_BKD, head_VD)
        found, g_BKV = jax.value_and_grad(loss, argnums=2, has_aux=True)(some, whole, logits_BKV)
        g_BKV = g_BKV.astype(narrow)
        g_hidden_BKD = jnp.einsum("bkv,vd->bkd", g_BKV, head_VD).astype(hidden_BKD.dtype)
        g_head_VD += _outer(g_BKV, hidden_BKD, dtype)
        return (jax.tree.map(jnp.add, totals, found), g_head_VD), g_hidden_BKD

    chunks = _to_chunks(chunk, (sliced, hidden_BTD))
    start = _zeros(loss, dtype, chunks, whole, head_VD), jnp.zeros(head_VD.shape, dtype)
    ((total, parts), g_head_VD), g_hidden = jax.lax.scan(body, start, chunks)
    g_hidden_BTD = jnp.swapaxes(g_hidden, 0, 1).reshape(hidden_BTD.shape)
    *_, d_hidden, d_head = tangents
    tangent = jnp.sum(g_hidden_BTD.astype(dtype) * d_hidden) + jnp.sum(g_head_VD * d_head)
    return (total, parts), (tangent.astype(dtype), jax.tree.map(jnp.zeros_like, parts))
