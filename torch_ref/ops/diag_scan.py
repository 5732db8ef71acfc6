"""The diagonal linear recurrence ``s_t = a_t * s_{t-1} + x_t`` in three forms of one signature."""

import torch
from torch import Tensor

from torch_ref.config import one_of


def diagonal_scan(
    a: Tensor, x_BTD: Tensor, s0_BD: Tensor | None = None, *, form: str = "sequential", chunk: int = 64
) -> Tensor:
    """All states of ``s_t = a_t * s_{t-1} + x_t``, ``s_{-1} = s0``; the forms agree in values and derivatives.

    Args:
        a: decay, (D,) when constant in time or (B, T, D) when it varies.
        x_BTD: input.
        s0_BD: state before the first token; zeros if omitted.
        form: ``"sequential"`` walks over time; ``"associative"`` doubles the reach of every state
            log2(T) times; ``"chunked"`` walks inside all chunks at once and then over chunks.
        chunk: tokens in a chunk, for the chunked form; T need not be a multiple.

    Returns:
        States ``s_0 .. s_{T-1}``, (B, T, D).

    Raises:
        ValueError: an unknown form, or ``chunk < 1``.
    """
    scan = _FORMS[one_of("scan form", form, _FORMS)]
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if s0_BD is None:
        s0_BD = torch.zeros_like(x_BTD[:, 0])
    return scan(a, x_BTD, s0_BD, chunk)


def _sequential(a: Tensor, x_BTD: Tensor, s_BD: Tensor, chunk: int) -> Tensor:
    decays = [a] * x_BTD.shape[1] if a.ndim == 1 else a.unbind(1)
    states = []
    for a_t, x_BD in zip(decays, x_BTD.unbind(1), strict=True):
        s_BD = torch.addcmul(x_BD, a_t, s_BD)
        states.append(s_BD)
    return torch.stack(states, 1)


def _associative(a: Tensor, x_BTD: Tensor, s0_BD: Tensor, chunk: int) -> Tensor:
    """Doubling: after the pass of reach r, s[t] sums the last 2r inputs, and a[t] multiplies the last 2r decays."""
    T = x_BTD.shape[1]
    a_BTD = a.expand(1, T, -1) if a.ndim == 1 else a
    s_BTD = torch.cat([(x_BTD[:, 0] + a_BTD[:, 0] * s0_BD)[:, None], x_BTD[:, 1:]], 1)
    reach = 1
    while reach < T:
        s_BTD = torch.cat([s_BTD[:, :reach], torch.addcmul(s_BTD[:, reach:], a_BTD[:, reach:], s_BTD[:, :-reach])], 1)
        a_BTD = torch.cat([a_BTD[:, :reach], a_BTD[:, reach:] * a_BTD[:, :-reach]], 1)
        reach *= 2
    return s_BTD


def _chunked(a: Tensor, x_BTD: Tensor, s0_BD: Tensor, chunk: int) -> Tensor:
    """With P the product of the decays since a chunk's start, ``s = local + P * (state at the chunk's start)``."""
    T, D = x_BTD.shape[1:]
    chunk = min(chunk, T)
    chunks = -(-T // chunk)

    def cut(z: Tensor) -> Tensor:
        return torch.nn.functional.pad(z, (0, 0, 0, chunks * chunk - T)).unflatten(1, (chunks, chunk))

    a_BGCD = a.expand(1, 1, chunk, D) if a.ndim == 1 else cut(a)
    x_BGCD = cut(x_BTD)
    decay, local = a_BGCD[:, :, 0], x_BGCD[:, :, 0]
    decays, locals_ = [decay], [local]
    for i in range(1, chunk):
        decay = a_BGCD[:, :, i] * decay
        local = torch.addcmul(x_BGCD[:, :, i], a_BGCD[:, :, i], local)
        decays.append(decay)
        locals_.append(local)
    decays, locals_ = torch.stack(decays, 2), torch.stack(locals_, 2)
    ends = decay.expand(-1, chunks, -1)
    starts = [s0_BD]
    for g in range(chunks - 1):
        starts.append(torch.addcmul(local[:, g], ends[:, g], starts[-1]))
    s_BGCD = torch.addcmul(locals_, decays, torch.stack(starts, 1)[:, :, None])
    return s_BGCD.flatten(1, 2)[:, :T]


_FORMS = {"sequential": _sequential, "associative": _associative, "chunked": _chunked}


def original_loop(u_BTD: Tensor, a_D: Tensor, b_D: Tensor, c_D: Tensor, d_D: Tensor) -> Tensor:
    """The original mHC-SSM's way to ``y_t = c s_t + d u_t``, kept as what the forms above are measured against.

    Indexing time and writing into a buffer in place makes its backward pass take O(T^2) memory traffic.
    """
    y_BTD = torch.empty_like(u_BTD)
    s_BD = torch.zeros_like(u_BTD[:, 0])
    for t in range(u_BTD.shape[1]):
        s_BD = a_D * s_BD + b_D * u_BTD[:, t]
        y_BTD[:, t] = c_D * s_BD + d_D * u_BTD[:, t]
    return y_BTD
