"""The ops of RLM-mHC: its mHC layer, as written and folded, and its Sinkhorn iterations."""

from collections.abc import Iterator

from parity_tests.cases.ops import B, D, T, draw, op
from parity_tests.compare import Case


def cases() -> Iterator[Case]:
    for flows in (1, 3):
        weights = draw(expand_DM=(D, flows * D), contract_MD=(flows * D, D), mixing_NN=(flows, flows))
        for name in ("flows", "folded"):
            yield op(f"linear_mhc.{name}", f"of {flows}", draw(x_BTD=(B, T, D)) | weights)
        yield op("linear_mhc.fold", f"of {flows}", weights)
    yield op("sinkhorn.sinkhorn_clipped", "of 0", draw(logits_NN=(2, 4, 4)), iters=0)
    yield op("sinkhorn.sinkhorn_clipped", "of 3, clipped", draw(40.0, logits_NN=(2, 3, 3)), iters=3)
