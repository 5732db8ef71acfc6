"""A mixer from outside: a decaying average of each channel over time, with one learned decay per channel."""

import dataclasses

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import ones, uniform, zeros
from mhc_jax.nn.mixers import Mixer, MixerConfig
from mhc_jax.registry import register


@register("mixer", "decaying_average")
@dataclasses.dataclass(frozen=True)
class DecayingAverageConfig(MixerConfig):
    """``y = s * (average W)`` with ``average_t = k average_{t-1} + (1 - k) u_t`` and ``k = exp(-exp(A_log))``."""

    def build(self, width, policy, init):
        return DecayingAverage(width, policy, init)


class DecayingAverage(Mixer):
    """The state is the average so far, (B, D)."""

    def __init__(self, width, policy, init):
        self.policy = policy
        self.A_log = init("A_log", zeros, 1, width, role="vector", axes=("decay", "channel"))
        self.W = init("W", uniform(width), width, width, role="kernel", axes=("embed", "inner"))
        self.s = init("s", ones, width)

    def init_state(self, batch, max_len):
        return jnp.zeros((batch, self.s.shape[0]), self.policy.accumulate)

    def __call__(self, u_BTD, state, scope):
        u_BTD = scope.values(u_BTD).astype(self.policy.accumulate)
        keep_D = jnp.exp(-jnp.exp(self.A_log[...].astype(u_BTD.dtype)))[0]
        starts_BT = scope.starts_BT(u_BTD.shape[1])  # first tokens of segments and, after padding, of rows
        starts_BT = jnp.zeros(u_BTD.shape[:2], bool) if starts_BT is None else starts_BT

        def step(average_BD, inputs):
            u_BD, start_B = inputs
            average_BD = keep_D * jnp.where(start_B[:, None], 0, average_BD) + (1 - keep_D) * u_BD
            return average_BD, average_BD

        before_BD = self.init_state(u_BTD.shape[0], 0) if state is None else state
        last_BD, averages_TBD = jax.lax.scan(step, before_BD, (jnp.swapaxes(u_BTD, 0, 1), starts_BT.T))
        compute = self.policy.compute
        y_BTD = jnp.swapaxes(averages_TBD, 0, 1).astype(compute) @ self.W[...].astype(compute)
        return self.s[...].astype(compute) * y_BTD, None if state is None else last_BD
