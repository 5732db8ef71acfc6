"""The ops of SHC: Cayley transforms, their mixtures, masks of streams, choices of components, factorised codes."""

from collections.abc import Iterator

import numpy as np

from parity_tests.cases.ops import B, D, N, T, draw, op
from parity_tests.compare import Case


def cases() -> Iterator[Case]:
    for size in (1, 3, 4, 6):
        yield op("projections.cayley_transform", f"of {size}", draw(entries_K=(2, size * (size - 1) // 2)), size=size)
    yield op("projections.spread_rotations", "", draw(entries_CK=(5, 6)), size=4)
    yield op("projections.mixture", "of matrices", draw(weight_C=(B, T, 2), parts=(2, N, N)))
    yield op("projections.mixture", "of vectors", draw(weight_C=(B, 2), parts=(2, N)))
    yield op("projections.masked_mixing", "", draw(mix_NN=(B, T, N, N), mask_N=(B, T, N)))
    logits = draw(logits_K=(B, T, 5))
    for k in (3, 5):
        yield op("routing.top_k_softmax", f"of {k}", logits, k=k)
    weight = {"weight_K": np.abs(draw(x=(B, T, 5))["x"]) * (np.arange(5) != 2)}
    yield op("routing.load_balance", "", logits | weight)
    yield op("routing.straight_through", "", draw(logits_N=(B, T, N)), temperature=0.7)
    yield op("routing.straight_through", "with noise", draw(logits_N=(B, T, N), noise_N=(B, T, N)), temperature=2.0)
    yield op("routing.prefix_mask", "", draw(choice_N=(B, T, N)))
    factors = draw(u_NR=(N, 2), v_DR=(D, 2))
    yield op("factor.compress", "", draw(h_BTND=(B, T, N, D)) | factors)
    yield op("factor.decompress", "", draw(code_BTR=(B, T, 2)) | factors)
    chosen = {"weight_BTE": np.abs(draw(x=(B, T, 4))["x"]) * (np.argsort(draw(x=(B, T, 4))["x"], -1) > 1)}
    experts = draw(gate_EDF=(4, D, 3), up_EDF=(4, D, 3), down_EFD=(4, 3, D))
    yield op("experts.swiglu_experts", "", draw(x_BTD=(B, T, D)) | chosen | experts, k=2)
