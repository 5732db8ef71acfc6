"""Single-pass mHC of DeepSeek-V4.1: a site reads with the weights that the site before it computed."""

from torch_ref.config import register
from torch_ref.nn.residual.dynamic_mhc import DynamicMHC
from torch_ref.nn.residual.mhc import tap_mixing
from torch_ref.ops import streams


@register("residual", "single_pass_mhc")
class SinglePassMHC(DynamicMHC):
    """State ``{"streams": (B, T, N, D), "read": (B, T, N)}``: the streams, and the weights of the next read.

    The first site reads the streams' mean.
    """

    @staticmethod
    def begin(h):
        return {"streams": h, "read": h.new_full(h.shape[:-1], 1 / h.shape[-2])}

    def pre(self, state, scope):
        next_BTN, post_BTN, res_BTNN = self.coefficients(state["streams"])
        u_BTD = streams.read(state["streams"], scope.tap("h_pre", state["read"]))
        return u_BTD, (next_BTN, (scope.tap("h_post", post_BTN), tap_mixing(res_BTNN, scope)))

    def post(self, state, y, ctx, scope):
        next_BTN, ctx = ctx
        return {"streams": super().post(state["streams"], y, ctx, scope), "read": next_BTN}
