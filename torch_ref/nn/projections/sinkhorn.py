"""Sinkhorn's iterations."""

from functools import partial

from torch_ref.config import one_of, register
from torch_ref.nn.projections.base import Projection
from torch_ref.ops import sinkhorn

_SINKHORN_FORMS = {
    "log columns_then_rows": sinkhorn.log_sinkhorn_columns_then_rows,
    "log rows_then_columns": sinkhorn.log_sinkhorn,
    "exp rows_then_columns": sinkhorn.sinkhorn_rows_then_columns,
}


@register("projection", "sinkhorn")
class Sinkhorn(Projection):
    """The gradient ``recompute`` only saves memory, so it is ``unrolled`` here."""

    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        op = _SINKHORN_FORMS[one_of("sinkhorn form", f"{config.domain} {config.order}", _SINKHORN_FORMS)]
        if one_of("sinkhorn gradient", config.gradient, ("unrolled", "recompute", "implicit")) == "implicit":
            if op is not sinkhorn.log_sinkhorn_columns_then_rows:
                raise ValueError("sinkhorn: the implicit gradient needs domain 'log' and order 'columns_then_rows'")
            op = sinkhorn.implicit_sinkhorn
        self.op = partial(op, iters=config.iters, temperature=config.temperature)

    def __call__(self, logits):
        return self.op(logits)
