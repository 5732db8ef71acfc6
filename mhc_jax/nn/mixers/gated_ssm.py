"""What state-space mixers share: a gate, a short convolution, and the state between calls."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mhc_jax.backend import target_backend
from mhc_jax.nn.layers import Dense, DepthwiseFilter
from mhc_jax.nn.mixers.base import Mixer
from mhc_jax.nn.scope import Scope
from mhc_jax.ops.conv import causal_depthwise_conv
from mhc_jax.precision import Policy
from mhc_jax.registry import required


class GatedSSM(Mixer):
    """``out(gate(g) * recurrence(SiLU(conv(u))))`` with ``u, g = in_proj(x)``, on E channels.

    The state is ``{"inputs": (B, K-1, E), "ssm": ...}`` with what the recurrence carries: memory and time per token do
    not depend on the length.

    Attributes:
        gate: activation of the gate.
        channels: E.
        in_proj, conv, out_proj: D to 2 E, filter of K taps, E to D; set by the subclass, as the policy is.
    """

    gate: Callable[[jax.Array], jax.Array]
    policy: Policy
    channels: int
    in_proj: Dense
    conv: DepthwiseFilter
    out_proj: Dense

    @required
    def init_ssm(self, batch: int) -> jax.Array:
        """What the recurrence carries before the first token."""

    @required
    def recur(self, x_BTE: jax.Array, ssm: Any, scope: Scope) -> tuple[jax.Array, jax.Array]:
        """The recurrence over the tokens after ``ssm``, which it resets at ``scope.starts_BT``; and what it carries.

        None stands for the state before the first token.
        """

    def init_state(self, batch, max_len):
        taps = self.conv.filter.shape[0]
        inputs_BJE = jnp.zeros((batch, taps - 1, self.channels), self.policy.compute)
        return {"inputs": inputs_BJE, "ssm": self.init_ssm(batch)}

    def __call__(self, u_BTD, state, scope):
        compute = self.policy.compute
        before = self.init_state(u_BTD.shape[0], 0) if state is None else state
        x_BTE, gate_BTE = jnp.split(self.in_proj(u_BTD.astype(compute)), 2, axis=-1)
        x_BTE = scope.values(x_BTE)
        T = x_BTE.shape[1]
        if (padding_BT := scope.padding_BT(T)) is not None:
            x_BTE = jnp.where(padding_BT[..., None], 0, x_BTE)  # the convolution then sees an empty past
        inputs = jnp.concatenate([before["inputs"], x_BTE], axis=1)
        taps = self.conv.taps(compute)
        convolved = causal_depthwise_conv(x_BTE, *taps, before["inputs"], segment_ids=scope.segments_BT)
        carried = None if state is None else state["ssm"]
        y_BTE, ssm = self.recur(scope.tap("conv", jax.nn.silu(convolved)), carried, scope)
        y_BTD = self.out_proj(scope.tap("ssm", y_BTE).astype(compute) * self.gate(gate_BTE))
        return y_BTD, None if state is None else {"inputs": inputs[:, T:], "ssm": ssm}


def scan_form(form: str, *, gpu: str = "chunked") -> Any:
    """``form``; for ``"auto"`` the sequential one on CPU, ``gpu`` on a GPU and the chunked one elsewhere."""
    return {"cpu": "sequential", "gpu": gpu}.get(target_backend(), "chunked") if form == "auto" else form
