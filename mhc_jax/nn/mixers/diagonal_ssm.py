"""The gated diagonal-SSM unit of mHC-SSM (its norm and residual live outside, in the block)."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.backend import target_backend
from mhc_jax.nn.init import Init, constant, normal, ones, zeros
from mhc_jax.nn.layers import Dense, DepthwiseFilter
from mhc_jax.nn.mixers.base import Mixer, MixerConfig
from mhc_jax.ops.conv import causal_depthwise_conv
from mhc_jax.ops.diag_ssm import diag_ssm
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("mixer", "diagonal_ssm")
@dataclasses.dataclass(frozen=True)
class DiagonalSSMConfig(MixerConfig):
    """Gated unit around one real, time-invariant pole per channel.

    Attributes:
        conv_kernel: taps of the causal depth-wise convolution.
        init: ``"time_scales"`` spreads the poles over memories of 2 to 1000 tokens with unit output
            variance and a unit skip; ``"original"`` draws logit_a, b, c from 0.02 N(0, 1) with d = 0, which
            leaves the unit nearly inert.
        form: algorithm of the recurrence; ``"auto"`` is sequential on CPU and chunked elsewhere.
        chunk: tokens per chunk of the chunked form.
    """

    conv_kernel: int = 3
    init: Literal["time_scales", "original"] = "time_scales"
    form: Literal["auto", "sequential", "associative", "chunked"] = "auto"
    chunk: int = 16

    def validate(self):
        super().validate()
        self.require(self.conv_kernel >= 1, f"conv_kernel must be at least 1, got {self.conv_kernel}")
        self.require(self.chunk >= 1, f"chunk must be at least 1, got {self.chunk}")

    def build(self, width, policy, init):
        return DiagonalSSM(self, width, policy, init)


class _SSM(nnx.Module):
    """Holds the four per-channel vectors of the recurrence."""

    def __init__(self, config: DiagonalSSMConfig, width: int, init: Init):
        if config.init == "original":
            small = normal(0.02)
            self.logit_a, self.b, self.c = (
                init(name, small, width, axes=("channel",)) for name in ("logit_a", "b", "c")
            )
            self.d = init("d", zeros, width, axes=("channel",))
            return
        memory_D = jnp.exp(jnp.linspace(math.log(2.0), math.log(1000.0), width))
        a_D = 1 - 1 / memory_D
        self.logit_a = init("logit_a", constant(jnp.log(a_D) - jnp.log1p(-a_D)), width, axes=("channel",))
        self.b = init("b", constant(jnp.sqrt(1 - jnp.square(a_D))), width, axes=("channel",))
        self.c = init("c", ones, width, axes=("channel",))
        self.d = init("d", ones, width, axes=("channel",))


class DiagonalSSM(Mixer):
    """``out(sigmoid(gate) * SSM(SiLU(conv(u))))`` with ``u, gate = in_proj(x)`` (mHC-SSM, sections 1.2 and 1.3).

    The state is ``{"inputs": (B, K-1, D), "ssm": (B, D)}``: O(1) memory and time per token.
    """

    def __init__(self, config: DiagonalSSMConfig, width: int, policy: Policy, init: Init):
        self.config, self.policy, self.width = config, policy, width
        self.in_proj = Dense(width, 2 * width, init / "in_proj", ("embed", "inner"))
        self.conv = DepthwiseFilter(config.conv_kernel, width, init / "conv")
        self.ssm = _SSM(config, width, init / "ssm")
        self.out_proj = Dense(width, width, init / "out_proj", ("inner", "embed"))

    def init_state(self, batch, max_len):
        return {
            "inputs": jnp.zeros((batch, self.config.conv_kernel - 1, self.width), self.policy.compute),
            "ssm": jnp.zeros((batch, self.width), self.policy.accumulate),
        }

    def __call__(self, u_BTD, state, scope):
        compute, accumulate = self.policy.compute, self.policy.accumulate
        before = self.init_state(u_BTD.shape[0], 0) if state is None else state
        x_BTD, gate_BTD = jnp.split(self.in_proj(u_BTD.astype(compute)), 2, axis=-1)
        x_BTD = scope.values(x_BTD)
        T = x_BTD.shape[1]
        if (padding_BT := scope.padding_BT(T)) is not None:
            x_BTD = jnp.where(padding_BT[..., None], 0, x_BTD)  # the convolution then sees an empty past
        inputs = jnp.concatenate([before["inputs"], x_BTD], axis=1)
        convolved = causal_depthwise_conv(
            x_BTD, *self.conv.taps(compute), before["inputs"], segment_ids=scope.segments_BT
        )
        x_BTD = scope.tap("conv", jax.nn.silu(convolved)).astype(accumulate)
        y_BTD, s_BD = diag_ssm(
            x_BTD,
            self.ssm.logit_a[...].astype(accumulate),
            self.ssm.b[...].astype(accumulate),
            self.ssm.c[...].astype(accumulate),
            self.ssm.d[...].astype(accumulate),
            before["ssm"],
            reset_BT=scope.starts_BT(T),
            form=self._form(),
            chunk=self.config.chunk,
        )
        y_BTD = self.out_proj(scope.tap("ssm", y_BTD).astype(compute) * jax.nn.sigmoid(gate_BTD))
        return y_BTD, None if state is None else {"inputs": inputs[:, T:], "ssm": s_BD}

    def _form(self):
        if self.config.form != "auto":
            return self.config.form
        return "sequential" if target_backend() == "cpu" else "chunked"
