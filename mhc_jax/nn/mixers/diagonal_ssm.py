"""The gated diagonal-SSM unit of mHC-SSM (its norm and residual live outside, in the block)."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.nn.init import Init, constant, normal, ones, zeros
from mhc_jax.nn.layers import Dense, DepthwiseFilter
from mhc_jax.nn.mixers.base import MixerConfig
from mhc_jax.nn.mixers.gated_ssm import GatedSSM, scan_form
from mhc_jax.ops.chunks import Implementation
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
        form: algorithm of the recurrence; ``"auto"`` is sequential on CPU, associative on a GPU (with its gradients the
            compiler makes 22 kernels of it, and 129 of the chunked form) and chunked elsewhere.
        chunk: tokens per chunk of the chunked form.
        implementation: ``"xla"``, or ``"pallas"`` for the kernels of TPUs and GPUs, see
            :mod:`mhc_jax.kernels.diagonal`. Input and output of the recurrence are then in the policy's compute dtype,
            and ``form`` and ``chunk`` are for the few tokens that no kernel takes.
    """

    conv_kernel: int = 3
    init: Literal["time_scales", "original"] = "time_scales"
    form: Literal["auto", "sequential", "associative", "chunked"] = "auto"
    chunk: int = 16
    implementation: Implementation = "xla"

    def validate(self):
        super().validate()
        self.require(self.conv_kernel >= 1, f"conv_kernel must be at least 1, got {self.conv_kernel}")
        self.require(self.chunk >= 1, f"chunk must be at least 1, got {self.chunk}")

    def check_kernels(self, width, policy):
        if self.implementation == "pallas":
            from mhc_jax.kernels.diagonal import fault  # Pallas takes long to import

            found = fault(width, policy.compute)
            self.require(not found, f"implementation 'pallas': {found}")

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


class DiagonalSSM(GatedSSM):
    """The gate is a sigmoid, and the recurrence mHC-SSM's, with a state (B, D) (mHC-SSM, sections 1.2 and 1.3)."""

    gate = staticmethod(jax.nn.sigmoid)

    def __init__(self, config: DiagonalSSMConfig, width: int, policy: Policy, init: Init):
        self.config, self.policy, self.channels = config, policy, width
        self.in_proj = Dense(width, 2 * width, init / "in_proj", ("embed", "inner"))
        self.conv = DepthwiseFilter(config.conv_kernel, width, init / "conv")
        self.ssm = _SSM(config, width, init / "ssm")
        self.out_proj = Dense(width, width, init / "out_proj", ("inner", "embed"))

    def init_ssm(self, batch):
        return jnp.zeros((batch, self.channels), self.policy.accumulate)

    def recur(self, x_BTE, ssm, scope):
        accumulate, implementation = self.policy.accumulate, self.config.implementation
        return diag_ssm(
            x_BTE.astype(accumulate) if implementation == "xla" else x_BTE,
            self.ssm.logit_a[...].astype(accumulate),
            self.ssm.b[...].astype(accumulate),
            self.ssm.c[...].astype(accumulate),
            self.ssm.d[...].astype(accumulate),
            ssm,
            reset_BT=scope.starts_BT(x_BTE.shape[1]),
            form=scan_form(self.config.form, gpu="associative"),
            chunk=self.config.chunk,
            implementation=implementation,
            batch_sharding=scope.batch_sharding,
        )
