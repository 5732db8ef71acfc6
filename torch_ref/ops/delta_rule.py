"""The gated delta rule, token by token and in chunks."""

import math

import torch
from torch import Tensor

from torch_ref.ops.chunks import cut, join, recur, sums_between


def gated_delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTH: Tensor,
    beta_BTH: Tensor,
    s0_BHKV: Tensor | None = None,
    *,
    reset_BT: Tensor | None = None,
    form: str = "chunked",
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """``S_t = a_t (I - beta_t k_t k_t') S_{t-1} + beta_t k_t v_t'`` and ``y_t = S_t' q_t / sqrt(K)``.

    Args:
        q_BTHK, k_BTHK, v_BTHV: queries, keys, values.
        log_decay_BTH: logarithms of the decays ``a``, at most 0; minus infinity forgets.
        beta_BTH: strengths of the corrections.
        s0_BHKV: states before the first token; zeros if omitted.
        reset_BT: true where the states are forgotten before the token is read.
        form: ``"recurrent"`` walks over the tokens; ``"chunked"`` over chunks, most of which it computes at once.
        chunk: tokens of a chunk; T need not be a multiple.

    Returns:
        Output (B, T, H, V) and the states after the last token (B, H, K, V).

    Raises:
        ValueError: an unknown form, or ``chunk < 1``.
    """
    if reset_BT is not None:
        log_decay_BTH = log_decay_BTH.masked_fill(reset_BT[:, :, None], -math.inf)
    return recur(_FORMS, form, chunk, (q_BTHK, k_BTHK, v_BTHV, log_decay_BTH, beta_BTH), s0_BHKV)


def _recurrent(inputs, s_BHKV, _):
    q_BTHK, k_BTHK, v_BTHV, log_decay_BTH, beta_BTH = inputs
    _, T, _, K = q_BTHK.shape
    identity = torch.eye(K).to(q_BTHK)
    y_TBHV = []
    for t in range(T):
        k_BHK1, beta_BH11 = k_BTHK[:, t, :, :, None], beta_BTH[:, t, :, None, None]
        carried_BHKK = log_decay_BTH[:, t, :, None, None].exp() * (identity - beta_BH11 * k_BHK1 @ k_BHK1.mT)
        s_BHKV = carried_BHKK @ s_BHKV + beta_BH11 * k_BHK1 @ v_BTHV[:, t, :, None, :]
        y_TBHV.append((s_BHKV.mT @ q_BTHK[:, t, :, :, None])[..., 0] * K**-0.5)
    return torch.stack(y_TBHV, 1), s_BHKV


def _chunked(inputs, s_BHKV, chunk):
    """The WY form: what a chunk writes is ``U - W S`` of the state S before it, with U and W of all chunks at once."""
    q_BTHK, k_BTHK, v_BTHV, log_decay_BTH, beta_BTH = inputs
    (length, _, K), V = q_BTHK.shape[1:], v_BTHV.shape[-1]
    of_keys = (q_BTHK * K**-0.5, k_BTHK, v_BTHV, log_decay_BTH[..., None], beta_BTH[..., None])
    q_CK, k_CK, v_CV, log_decay_C1, beta_C1 = (cut(x, chunk) for x in of_keys)
    decay_CC = sums_between(log_decay_C1)[..., 0].exp().tril()
    since_C1 = log_decay_C1.cumsum(-2).exp()
    # The UT transform: one triangular system for what corrections owe to those before them.
    owed_CC = beta_C1 * (k_CK @ k_CK.mT) * decay_CC
    asked = torch.cat([beta_C1 * v_CV, beta_C1 * since_C1 * k_CK], -1)
    u_CV, w_CK = torch.linalg.solve_triangular(owed_CC, asked, upper=False, unitriangular=True).split([V, K], -1)
    read_CK, scores_CC = since_C1 * q_CK, (q_CK @ k_CK.mT) * decay_CC
    kept_CK, left_11 = decay_CC[..., -1, :, None] * k_CK, since_C1[..., -1:, :]
    y = []
    for read, scores, kept, left, u, w in zip(
        *(x.unbind(2) for x in (read_CK, scores_CC, kept_CK, left_11, u_CV, w_CK))
    ):
        written = u - w @ s_BHKV
        y.append(read @ s_BHKV + scores @ written)
        s_BHKV = left * s_BHKV + kept.mT @ written
    return join(torch.stack(y, 2), length), s_BHKV


_FORMS = {"recurrent": _recurrent, "chunked": _chunked}
