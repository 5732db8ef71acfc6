"""Single-pass mHC: every site reads with weights that the previous site has predicted."""

import dataclasses

import jax.numpy as jnp

from mhc_jax.nn.residual.dynamic_mhc import DynamicMHC, DynamicMHCConfig
from mhc_jax.registry import register


@register("residual", "single_pass_mhc")
@dataclasses.dataclass(frozen=True)
class SinglePassMHCConfig(DynamicMHCConfig):
    """Single-pass mHC of DeepSeek-V4.1 (2609.19969, section 2.4.1), with the parameters of dynamic mHC.

    Each site passes over the streams once, because the read does not wait for coefficients of the same streams.
    The first site reads the mean of the streams. Ends ``"copy"`` with ``collapse="carried"`` read with the weights of
    the last site, as the paper does before its final norm.
    """

    carries = frozenset({"read"})

    def begin(self, h):
        return {"streams": h, "read": jnp.full((*h.batch_shape, self.streams), 1 / self.streams, h.dtype)}

    def build(self, width, policy, init):
        return SinglePassMHC(self, width, policy, init)


class SinglePassMHC(DynamicMHC):
    """State: ``"streams"``, and ``"read"`` (B, T, N), the weights with which the next site reads."""

    def pre(self, state, scope, norm=None):
        h, (next_read_BTN, post_BTN, res_BTNN) = self.coefficients(state["streams"], scope)
        u_BTD, ctx = self.read_with(h, (state["read"], post_BTN, res_BTNN), scope, norm)
        return u_BTD, (next_read_BTN, ctx)

    def post(self, state, y, ctx, scope):
        next_read_BTN, ctx = ctx
        return {"streams": super().post(state["streams"], y, ctx, scope), "read": next_read_BTN}
