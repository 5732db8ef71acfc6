"""Next-token cross-entropy as (sum, count), whole or chunked so that full logits never exist."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

IGNORE = -100


def cross_entropy(
    logits_BTV: Float[Array, "*B V"], targets_BT: Int[Array, "*B"], *, ignore: int = IGNORE
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed negative log likelihood in nats and the number of targets that count.

    The mean, ``sum / count``, is NaN when every target is ignored, as in PyTorch.
    """
    valid = targets_BT != ignore
    safe = jnp.where(valid, targets_BT, 0)
    picked = jnp.take_along_axis(logits_BTV, safe[..., None], axis=-1)[..., 0]
    losses = jnp.where(valid, jax.nn.logsumexp(logits_BTV, axis=-1) - picked, 0)
    return jnp.sum(losses), jnp.sum(valid, dtype=losses.dtype)


def chunked_cross_entropy(
    hidden_BTD: Float[Array, "B T D"],
    head_VD: Float[Array, "V D"],
    targets_BT: Int[Array, "B T"],
    *,
    chunk: int,
    logits_dtype: jnp.dtype = jnp.float32,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """:func:`cross_entropy` of ``hidden @ head.T`` with at most (B, chunk, V) logits alive.

    Under differentiation each chunk's gradient is formed together with its loss, so nothing is
    recomputed and the head costs its three matrix products. The rule is a forward-mode one
    (an inner product with those gradients), hence forward, reverse and mixed modes all work.

    Args:
        hidden_BTD: input of the head. Chunks are cut along T, so a sharded batch axis stays sharded.
        head_VD: output embedding.
        targets_BT: token ids, or ``IGNORE``.
        chunk: tokens of each sequence in a chunk; T need not be a multiple.
        logits_dtype: dtype of logits, sums and loss.
    """
    chunk = min(chunk, hidden_BTD.shape[1])
    pad = -hidden_BTD.shape[1] % chunk
    hidden_BTD = jnp.pad(hidden_BTD, ((0, 0), (0, pad), (0, 0)))
    targets_BT = jnp.pad(targets_BT, ((0, 0), (0, pad)), constant_values=IGNORE)
    count = jnp.sum(targets_BT != IGNORE, dtype=logits_dtype)
    return _chunked_sum(chunk, logits_dtype, targets_BT, hidden_BTD, head_VD), count


def _chunk_loss(logits_dtype, targets_BK, hidden_BKD, head_VD):
    logits = jnp.einsum("bkd,vd->bkv", hidden_BKD, head_VD, preferred_element_type=logits_dtype)
    return cross_entropy(logits, targets_BK)[0]


def _to_chunks(x, chunk):
    return jnp.swapaxes(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 0, 1)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _chunked_sum(chunk, logits_dtype, targets_BT, hidden_BTD, head_VD):
    def body(total, inputs):
        targets_BK, hidden_BKD = inputs
        return total + _chunk_loss(logits_dtype, targets_BK, hidden_BKD, head_VD), None

    chunks = (_to_chunks(targets_BT, chunk), _to_chunks(hidden_BTD, chunk))
    return jax.lax.scan(body, jnp.zeros((), logits_dtype), chunks)[0]


@_chunked_sum.defjvp
def _chunked_sum_jvp(chunk, logits_dtype, primals, tangents):
    targets_BT, hidden_BTD, head_VD = primals
    gradient = jax.value_and_grad(partial(_chunk_loss, logits_dtype), argnums=(1, 2))

    def body(carry, inputs):
        total, g_head = carry
        loss, (g_hidden, g) = gradient(*inputs, head_VD)
        return (total + loss, g_head + g), g_hidden

    chunks = (_to_chunks(targets_BT, chunk), _to_chunks(hidden_BTD, chunk))
    start = (jnp.zeros((), logits_dtype), jnp.zeros(head_VD.shape, logits_dtype))
    (total, g_head), g_hidden = jax.lax.scan(body, start, chunks)
    g_hidden = jnp.swapaxes(g_hidden, 0, 1).reshape(hidden_BTD.shape)
    _, d_hidden, d_head = tangents
    tangent = jnp.sum(g_hidden.astype(logits_dtype) * d_hidden) + jnp.sum(g_head * d_head)
    return total, tangent.astype(logits_dtype)
