"""What recurrences of a matrix share: the choice of a form, sequences cut into chunks, and sums inside these."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_ref.config import one_of

# From inputs (B, T, H, ...), a state and a number of tokens to outputs (B, T, H, V) and the last state.
Rule = Callable[[Sequence[Tensor], Tensor, int], tuple[Tensor, Tensor]]


def recur(
    rules: Mapping[str, Rule], form: str, chunk: int, inputs: Sequence[Tensor], s0_BHKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Runs the rule of that form, or for a single token the recurrence.

    Sums are in float32 whatever the inputs and under autocast, or in float64.

    Args:
        rules: by form; ``"recurrent"`` is one of them.
        form: one of these.
        chunk: tokens of a chunk, at least 1.
        inputs: (B, T, H, ...), of which the second are keys and the third values.
        s0_BHKV: states before the first token; zeros if None.

    Returns:
        Output (B, T, H, V) in the dtype of the values, and the states after the last token.

    Raises:
        ValueError: an unknown form, or ``chunk < 1``.
    """
    one_of("form", form, rules)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    _, k_BTHK, v_BTHV, *_ = inputs
    B, T, H, K = k_BTHK.shape
    rule = rules["recurrent" if T == 1 else form]
    dtype = torch.promote_types(v_BTHV.dtype, torch.float32)
    s_BHKV = v_BTHV.new_zeros(B, H, K, v_BTHV.shape[-1]) if s0_BHKV is None else s0_BHKV
    with torch.autocast(v_BTHV.device.type, enabled=False):
        y_BTHV, s_BHKV = rule([x.to(dtype) for x in inputs], s_BHKV.to(dtype), min(chunk, T))
    return y_BTHV.to(v_BTHV.dtype), s_BHKV


def cut(x_BTHM: Tensor, size: int) -> Tensor:
    """(B, H, N, C, M): N chunks of ``size`` tokens, the last one filled up with zeros."""
    missing = -x_BTHM.shape[1] % size
    return F.pad(x_BTHM, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4)


def join(y_BHNCM: Tensor, length: int) -> Tensor:
    """(B, T, H, M), the inverse of :func:`cut`."""
    return y_BHNCM.flatten(2, 3)[:, :, :length].transpose(1, 2)


def sums_after(x_CK: Tensor) -> Tensor:
    """(..., C, K): at ``[i]`` the sum of the rows ``i + 1 .. C - 1``."""
    later_CK = F.pad(x_CK[..., 1:, :], (0, 0, 0, 1))
    return later_CK.flip(-2).cumsum(-2).flip(-2)


def sums_between(x_CK: Tensor) -> Tensor:
    """(..., C, C, K): at ``[i, j]`` the sum of the rows ``j + 1 .. i``, zero where there are none."""
    upper_CC = torch.ones(x_CK.shape[-2], x_CK.shape[-2], dtype=torch.bool, device=x_CK.device).triu()
    return x_CK[..., None, :].masked_fill(upper_CC[..., None], 0).cumsum(-3)
