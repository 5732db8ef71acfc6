"""Gated linear attention, token by token and in chunks."""

import math

import torch
from torch import Tensor

from torch_ref.ops.chunks import cut, join, recur, sums_after


def gated_linear_attention(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTHK: Tensor,
    s0_BHKV: Tensor | None = None,
    *,
    reset_BT: Tensor | None = None,
    form: str = "chunked",
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """``S_t = diag(a_t) S_{t-1} + k_t v_t'`` and ``y_t = S_t' q_t / sqrt(K)``.

    Args:
        q_BTHK, k_BTHK, v_BTHV: queries, keys, values.
        log_decay_BTHK: logarithms of the decays ``a``, at most 0; minus infinity forgets.
        s0_BHKV: states before the first token; zeros if omitted.
        reset_BT: true where the states are forgotten before the token is read.
        form: ``"recurrent"`` walks over the tokens; ``"chunked"`` over chunks, most of which it computes at once.
        chunk: tokens of a chunk, rounded up to a power of two; T need not be a multiple.

    Returns:
        Output (B, T, H, V) and the states after the last token (B, H, K, V).

    Raises:
        ValueError: an unknown form, or ``chunk < 1``.
    """
    if reset_BT is not None:
        log_decay_BTHK = log_decay_BTHK.masked_fill(reset_BT[:, :, None, None], -math.inf)
    return recur(_FORMS, form, chunk, (q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK), s0_BHKV)


def _recurrent(inputs, s_BHKV, _):
    q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK = inputs
    y_TBHV = []
    for t in range(q_BTHK.shape[1]):
        write_BHKV = k_BTHK[:, t, :, :, None] * v_BTHV[:, t, :, None, :]
        s_BHKV = torch.diag_embed(log_decay_BTHK[:, t].exp()) @ s_BHKV + write_BHKV
        y_TBHV.append((q_BTHK[:, t, :, None, :] @ s_BHKV)[..., 0, :] * q_BTHK.shape[-1] ** -0.5)
    return torch.stack(y_TBHV, 1), s_BHKV


def _chunked(inputs, s_BHKV, chunk):
    """The state of the chunks before, and pairs of tokens inside (secondary chunking down to pairs)."""
    size = 1 << (chunk - 1).bit_length()
    length, K = inputs[0].shape[1], inputs[0].shape[-1]
    q_BHNCK, k_BHNCK, v_BHNCV, log_decay_BHNCK = (cut(x, size) for x in inputs)
    q_BHNCK = q_BHNCK * K**-0.5
    since_BHNCK = log_decay_BHNCK.cumsum(-2).exp()
    kept_BHNK1 = since_BHNCK[..., -1, :, None]
    written_BHNKV = (k_BHNCK * sums_after(log_decay_BHNCK).exp()).mT @ v_BHNCV
    before = []
    for kept_BHK1, written_BHKV in zip(kept_BHNK1.unbind(2), written_BHNKV.unbind(2), strict=True):
        before.append(s_BHKV)
        s_BHKV = kept_BHK1 * s_BHKV + written_BHKV
    y_BHNCV = (q_BHNCK * since_BHNCK) @ torch.stack(before, 2) + _inside(q_BHNCK, k_BHNCK, v_BHNCV, log_decay_BHNCK)
    return join(y_BHNCV, length), s_BHKV


def _inside(q_CK, k_CK, v_CV, log_decay_CK):
    """What tokens read of the tokens of their own chunk.

    A chunk is halved again and again. Any two tokens are parted at one border: the later one has decayed since it, and
    the earlier one decays until it, so that no exponent is above 0 and none is a difference.
    """
    y_CV = (q_CK * k_CK).sum(-1, keepdim=True) * v_CV
    size = half = q_CK.shape[-2]
    while (half := half // 2) >= 1:
        (_, q), (k, _), (v, _), (early, late) = (
            x.unflatten(-2, (size // (2 * half), 2, half)).unbind(-3) for x in (q_CK, k_CK, v_CV, log_decay_CK)
        )
        read = (q * late.cumsum(-2).exp()) @ (k * sums_after(early).exp()).mT @ v
        y_CV = y_CV + torch.stack([torch.zeros_like(read), read], -3).flatten(-4, -2)
    return y_CV


_FORMS = {"recurrent": _recurrent, "chunked": _chunked}
