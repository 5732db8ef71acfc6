"""The diagonal linear recurrence ``s_t = a_t * s_{t-1} + x_t`` in three forms of one signature."""

from typing import Any

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


def states_before(a: Tensor, x_BTD: Tensor, s0_BD: Tensor | None, *, form: str, chunk: int) -> Tensor:
    """The states before every token, ``s_{-1} .. s_{T-2}``; see :func:`diagonal_scan`."""
    s_BTD = diagonal_scan(a, x_BTD, s0_BD, form=form, chunk=chunk)
    first_BD = torch.zeros_like(s_BTD[:, 0]) if s0_BD is None else s0_BD
    return torch.cat([first_BD[:, None], s_BTD[:, :-1]], 1)


@torch.library.custom_op("torch_ref::walk", mutates_args=())
def _walk(a: Tensor, x_BTD: Tensor, s0_BD: Tensor, reverse: bool) -> Tensor:
    """The recurrence step by step, from the last token to the first if ``reverse``.

    One opaque operator, so that ``torch.compile`` does not unroll time.
    """
    s_BTD = torch.empty_like(x_BTD, memory_format=torch.contiguous_format)
    T = x_BTD.shape[1]
    decays = [a] * T if a.ndim == 1 else a.unbind(1)
    steps = list(zip(decays, x_BTD.unbind(1), s_BTD.unbind(1), strict=True))
    state = s0_BD
    for a_t, x_t, s_t in reversed(steps) if reverse else steps:
        state = torch.addcmul(x_t, a_t, state, out=s_t)
    return s_BTD


@_walk.register_fake
def _(a: Tensor, x_BTD: Tensor, s0_BD: Tensor, reverse: bool) -> Tensor:
    return torch.empty_like(x_BTD, memory_format=torch.contiguous_format)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    a, _, s0_BD, ctx.reverse = inputs
    ctx.save_for_backward(a, s0_BD, output)


def _walk_backward(ctx: Any, g_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    """The states' cotangents obey the same recurrence the other way: ``gs_t = g_t + a_{t+1} gs_{t+1}``."""
    a, s0_BD, s_BTD = ctx.saved_tensors
    first, shift = (-1, 1) if ctx.reverse else (0, -1)
    # The decay that the roll wraps around meets the zero initial state.
    gs_BTD = _walk(a if a.ndim == 1 else a.roll(shift, 1), g_BTD, torch.zeros_like(s0_BD), not ctx.reverse)
    before = [s_BTD[:, 1:], s0_BD[:, None]] if ctx.reverse else [s0_BD[:, None], s_BTD[:, :-1]]
    ga_BTD = gs_BTD * torch.cat(before, 1)
    if a.ndim == 1:
        return ga_BTD.sum((0, 1)), gs_BTD, a * gs_BTD[:, first], None
    return ga_BTD, gs_BTD, a[:, first] * gs_BTD[:, first], None


_walk.register_autograd(_walk_backward, setup_context=_save_for_backward)


def _sequential(a: Tensor, x_BTD: Tensor, s0_BD: Tensor, chunk: int) -> Tensor:
    return _walk(a, x_BTD, s0_BD, False)


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
    T = x_BTD.shape[1]
    chunk = min(chunk, T)
    chunks = -(-T // chunk)

    def cut(z: Tensor) -> Tensor:
        return torch.nn.functional.pad(z, (0, 0, 0, chunks * chunk - T)).unflatten(1, (chunks, chunk))

    a_steps = [a] * chunk if a.ndim == 1 else cut(a).unbind(2)
    x_steps = cut(x_BTD).unbind(2)
    decay, local = a_steps[0], x_steps[0]
    decays, locals_ = [decay], [local]
    for a_BGD, x_BGD in zip(a_steps[1:], x_steps[1:], strict=True):
        decay = a_BGD * decay
        local = torch.addcmul(x_BGD, a_BGD, local)
        decays.append(decay)
        locals_.append(local)
    ends = [decay] * chunks if a.ndim == 1 else decay.unbind(1)
    starts = [s0_BD]
    for end, inside in zip(ends[:-1], local.unbind(1)[:-1], strict=True):
        starts.append(torch.addcmul(inside, end, starts[-1]))
    s_BGCD = torch.addcmul(torch.stack(locals_, 2), torch.stack(decays, -2), torch.stack(starts, 1)[:, :, None])
    return s_BGCD.flatten(1, 2)[:, :T]


_FORMS = {"sequential": _sequential, "associative": _associative, "chunked": _chunked}


def original_loop(u_BTD: Tensor, a_D: Tensor, b_D: Tensor, c_D: Tensor, d_D: Tensor) -> Tensor:
    """The original mHC-SSM's loop for ``y_t = c s_t + d u_t``, kept as the reference for the speed of the forms above.

    Indexing time and writing into a buffer in place makes its backward pass take O(T^2) memory traffic.
    """
    y_BTD = torch.empty_like(u_BTD)
    s_BD = torch.zeros_like(u_BTD[:, 0])
    for t in range(u_BTD.shape[1]):
        s_BD = a_D * s_BD + b_D * u_BTD[:, t]
        y_BTD[:, t] = c_D * s_BD + d_D * u_BTD[:, t]
    return y_BTD
