"""Attention to latents in both forms; each form is compared with the mirror's other one, too."""

from collections.abc import Iterator

import numpy as np

from parity_tests.cases.ops import B, T, draw, op
from parity_tests.compare import Case
from torch_ref.ops import attention

H, K, P, R, V = 3, 4, 2, 5, 3
FORMS = ("latent_attention", "absorbed_latent_attention")


def cases() -> Iterator[Case]:
    arrays = draw(
        q_BTHK=(B, T, H, K),
        q_rope_BTHP=(B, T, H, P),
        latent_BSR=(B, T, R),
        k_rope_BSP=(B, T, P),
        k_up_RHK=(R, H, K),
        v_up_RHV=(R, H, V),
    )
    segments = {"segment_ids": np.array([[0, 0, 0, 1, 1, 2, 2], [4, 4, 4, 4, 4, 5, 5]])}
    few = draw(q_BTHK=(B, 3, H, K), q_rope_BTHP=(B, 3, H, P))
    padded = {"start_B": np.arange(B) + 2}
    without = draw(q_rope_BTHP=(B, T, H, 0), k_rope_BSP=(B, T, 0))
    for form, other in zip(FORMS, reversed(FORMS), strict=True):
        path = f"attention.{form}"
        yield op(path, "", arrays)
        yield op(path, "against the other form", arrays, torch=_of(other))
        yield op(path, "scaled, without positions", arrays | without, scale=0.7)
        yield op(path, "after padding and a cache", arrays | few | padded, start=4)
        yield op(path, "both ways, in segments", arrays | segments, causal=False)


def _of(form: str):
    return lambda arrays: getattr(attention, form)(**arrays)
