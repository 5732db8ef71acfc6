"""The selective state-space mixer of Mamba (Gu and Dao, arXiv 2312.00752)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, Initializer, constant, normal, ones, time_steps, uniform
from mhc_jax.nn.layers import Dense, DepthwiseFilter
from mhc_jax.nn.mixers.base import MixerConfig
from mhc_jax.nn.mixers.gated_ssm import GatedSSM, scan_form
from mhc_jax.ops.selective_scan import selective_scan
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("mixer", "selective_ssm")
@dataclasses.dataclass(frozen=True)
class SelectiveSSMConfig(MixerConfig):
    """A recurrence whose time steps, inputs and outputs depend on the token (Mamba).

    Attributes:
        state: states of a channel, N.
        expand: channels, as a multiple of the model's width.
        conv_kernel: taps of the causal depth-wise convolution.
        dt_rank: width through which the time steps are computed; None for a sixteenth of the model's width.
        bias: of the projections into and out of the unit.
        conv_bias: of the convolution.
        init: ``"time_scales"`` draws time steps between 0.001 and 0.1, so that states remember, and scales the output
            by the number of sites, as Mamba does; ``"original"`` is the student of SHC, whose time steps start near
            0.72, so that states forget within a few tokens.
        form: algorithm of the recurrence, see :func:`mhc_jax.ops.selective_scan.selective_scan`; ``"auto"`` is
            sequential on CPU and chunked elsewhere.
        chunk: tokens of a chunk.
    """

    state: int = 16
    expand: int = 2
    conv_kernel: int = 4
    dt_rank: int | None = None
    bias: bool = False
    conv_bias: bool = True
    init: Literal["time_scales", "original"] = "time_scales"
    form: Literal["auto", "sequential", "associative", "chunked"] = "auto"
    chunk: int = 32

    def validate(self):
        super().validate()
        self.require_counts(1, "state", "expand", "conv_kernel", "chunk")
        self.require(self.dt_rank is None or self.dt_rank >= 1, f"dt_rank must be at least 1, got {self.dt_rank}")

    def small(self):
        return self.replace(state=3, chunk=4)

    def value_width(self, width):
        return self.expand * width

    def rank(self, width: int) -> int:
        """Width through which the time steps are computed, in a model of that width."""
        return self.dt_rank or -(-width // 16)

    def product_flops(self, width, length):
        # Of each state: decay, input, sum of both, and output with its sum.
        return 6 * self.expand * width * self.state

    def build(self, width, policy, init):
        return SelectiveSSM(self, width, policy, init)


class SelectiveSSM(GatedSSM):
    """The gate is a SiLU, and the recurrence Mamba's, with a state (B, E, N) and ``E = expand * D``.

    From the convolved channels come the time steps ``softplus(dt_proj(.))`` and what the token writes to and reads from
    the states, by ``x_proj``.
    """

    gate = staticmethod(jax.nn.silu)

    def __init__(self, config: SelectiveSSMConfig, width: int, policy: Policy, init: Init):
        self.config, self.policy = config, policy
        self.channels, self.rank = config.expand * width, config.rank(width)
        kernels = _kernels(config, self.channels, self.rank, init.sites)
        bias = None if config.bias else False
        E, N, R = self.channels, config.state, self.rank
        self.in_proj = Dense(width, 2 * E, init / "in_proj", ("embed", "inner"), kernel=kernels["in"], bias=bias)
        self.conv = DepthwiseFilter(config.conv_kernel, E, init / "conv", bias=config.conv_bias)
        self.x_proj = Dense(E, R + 2 * N, init / "x_proj", ("inner", ""), kernel=kernels["x"], bias=False)
        self.dt_proj = Dense(R, E, init / "dt_proj", ("", "inner"), kernel=kernels["dt"], bias=kernels["dt_bias"])
        rates_EN = jnp.broadcast_to(jnp.log(jnp.arange(1, N + 1)), (E, N))
        self.a_log = init("a_log", constant(rates_EN), E, N, role="vector", axes=("channel", ""))
        self.d = init("d", ones, E, axes=("channel",))
        self.out_proj = Dense(E, width, init / "out_proj", ("inner", "embed"), kernel=kernels["out"], bias=bias)

    def init_ssm(self, batch):
        return jnp.zeros((batch, self.channels, self.config.state), self.policy.accumulate)

    def recur(self, x_BTE, ssm, scope):
        accumulate, R, N = self.policy.accumulate, self.rank, self.config.state
        dt_BTR, in_BTN, out_BTN = jnp.split(self.x_proj(x_BTE), [R, R + N], axis=-1)
        dt_BTE = scope.tap("dt", jax.nn.softplus(self.dt_proj(dt_BTR).astype(accumulate)))
        return selective_scan(
            x_BTE.astype(accumulate),
            dt_BTE,
            self.a_log[...].astype(accumulate),
            in_BTN.astype(accumulate),
            out_BTN.astype(accumulate),
            self.d[...].astype(accumulate),
            ssm,
            reset_BT=scope.starts_BT(x_BTE.shape[1]),
            form=scan_form(self.config.form),
            chunk=self.config.chunk,
        )


def _kernels(config: SelectiveSSMConfig, channels: int, rank: int, sites: int) -> dict[str, Initializer | None]:
    """Initialisers of the products; None for PyTorch's default."""
    if config.init == "original":
        small = normal(0.02)
        return {"in": small, "x": small, "out": small, "dt": uniform(100), "dt_bias": uniform(rank)}
    default = uniform(channels)
    return {
        "in": None,
        "x": None,
        "out": lambda key, shape: default(key, shape) * sites**-0.5,
        "dt": uniform(rank),
        "dt_bias": time_steps,
    }
