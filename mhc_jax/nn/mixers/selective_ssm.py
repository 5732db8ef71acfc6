"""The selective state-space mixer of Mamba (Gu and Dao, arXiv 2312.00752)."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.backend import target_backend
from mhc_jax.nn.init import Init, Initializer, constant, normal, ones, uniform
from mhc_jax.nn.layers import Dense, DepthwiseFilter
from mhc_jax.nn.mixers.base import Mixer, MixerConfig
from mhc_jax.ops.conv import causal_depthwise_conv
from mhc_jax.ops.selective_scan import selective_scan
from mhc_jax.precision import Policy
from mhc_jax.registry import register

# Time steps at the start: a state of rate 1 remembers for 10 to 1000 tokens.
STEPS = (1e-3, 1e-1)


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


class SelectiveSSM(Mixer):
    """``out(SiLU(gate) * SSM(SiLU(conv(u))))`` with ``u, gate = in_proj(x)``.

    From the channels ``SiLU(conv(u))`` come the time steps ``softplus(dt_proj(.))`` and what the token writes to and
    reads from the states, by ``x_proj``. The state is ``{"inputs": (B, K-1, E), "ssm": (B, E, N)}`` with
    ``E = expand * D``: memory and time per token do not depend on the length.
    """

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

    def init_state(self, batch, max_len):
        return {
            "inputs": jnp.zeros((batch, self.config.conv_kernel - 1, self.channels), self.policy.compute),
            "ssm": jnp.zeros((batch, self.channels, self.config.state), self.policy.accumulate),
        }

    def __call__(self, u_BTD, state, scope):
        compute, accumulate = self.policy.compute, self.policy.accumulate
        before = self.init_state(u_BTD.shape[0], 0) if state is None else state
        x_BTE, gate_BTE = jnp.split(self.in_proj(u_BTD.astype(compute)), 2, axis=-1)
        x_BTE = scope.values(x_BTE)
        T = x_BTE.shape[1]
        if (padding_BT := scope.padding_BT(T)) is not None:
            x_BTE = jnp.where(padding_BT[..., None], 0, x_BTE)  # the convolution then sees an empty past
        inputs = jnp.concatenate([before["inputs"], x_BTE], axis=1)
        convolved = causal_depthwise_conv(
            x_BTE, *self.conv.taps(compute), before["inputs"], segment_ids=scope.segments_BT
        )
        x_BTE = scope.tap("conv", jax.nn.silu(convolved))
        R, N = self.rank, self.config.state
        dt_BTR, in_BTN, out_BTN = jnp.split(self.x_proj(x_BTE), [R, R + N], axis=-1)
        dt_BTE = scope.tap("dt", jax.nn.softplus(self.dt_proj(dt_BTR).astype(accumulate)))
        y_BTE, s_BEN = selective_scan(
            x_BTE.astype(accumulate),
            dt_BTE,
            self.a_log[...].astype(accumulate),
            in_BTN.astype(accumulate),
            out_BTN.astype(accumulate),
            self.d[...].astype(accumulate),
            before["ssm"],
            reset_BT=scope.starts_BT(T),
            form=self._form(),
            chunk=self.config.chunk,
        )
        y_BTD = self.out_proj(scope.tap("ssm", y_BTE).astype(compute) * jax.nn.silu(gate_BTE))
        return y_BTD, None if state is None else {"inputs": inputs[:, T:], "ssm": s_BEN}

    def _form(self):
        if self.config.form != "auto":
            return self.config.form
        return "sequential" if target_backend() == "cpu" else "chunked"


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
        "dt_bias": _time_steps,
    }


def _time_steps(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Biases whose softplus is uniform in the logarithm over :data:`STEPS`."""
    low, high = map(math.log, STEPS)
    dt = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
    return dt + jnp.log(-jnp.expm1(-dt))
