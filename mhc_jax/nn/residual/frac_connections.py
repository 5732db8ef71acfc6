"""Frac-connections: hyper-connections between the parts of a single stream of unchanged width."""

import dataclasses

import jax.numpy as jnp

from mhc_jax.nn.init import Init, constant, ones
from mhc_jax.nn.residual.alpha_beta import AlphaBeta
from mhc_jax.nn.residual.base import ResidualConfig
from mhc_jax.ops import streams
from mhc_jax.ops.norm import layer_norm
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("residual", "frac")
@dataclasses.dataclass(frozen=True)
class FracConnectionsConfig(ResidualConfig):
    """Frac-connections (2503.14125). Starts as the plain residual.

    Attributes:
        fractions: number m of equal parts into which the width is cut.
        dynamic: whether coefficients depend on the token.
        tanh: whether a tanh bounds the dynamic part.
    """

    fractions: int = 4
    dynamic: bool = True
    tanh: bool = True

    @property
    def stream_count(self):
        return None

    def validate(self):
        super().validate()
        self.require(self.fractions >= 1, f"fractions must be at least 1, got {self.fractions}")

    def build(self, width, policy, init):
        self.require(
            width % self.fractions == 0, f"a width of {width} cannot be cut into {self.fractions} equal fractions"
        )
        return FracConnections(self, width, policy, init)


class FracConnections(AlphaBeta):
    """State (B, T, D); fraction i is its i-th run of D / m channels.

    ``u_i = sum_j Y[j, i] x_j`` and ``x'_i = sum_j A[j, i] x_j + B_i y_i``: unlike in hyper-connections, a
    fraction receives only the same fraction of the branch's output.
    """

    def __init__(self, config: FracConnectionsConfig, width: int, policy: Policy, init: Init):
        m, part = config.fractions, width // config.fractions
        self.config, self.policy = config, policy
        alpha = constant(jnp.tile(jnp.eye(m), (1, 2)))
        self.static_alpha = init("static_alpha", alpha, m, 2 * m, role="vector", axes=("stream", "coefficient"))
        self.static_beta = init("static_beta", ones, m, axes=("stream",))
        if config.dynamic:
            self.add_dynamic_part(init, part, 2 * m, (), rms=False)

    def pre(self, state, scope):
        m = self.config.fractions
        parts = streams.split_streams(state, m)
        alpha, beta = self._coefficients(parts)
        from_part = jnp.swapaxes(alpha, -1, -2)
        u_BTD = streams.mix(parts, scope.tap("h_pre", from_part[..., :m, :])).join()
        return u_BTD, (scope.tap("h_post", beta), scope.tap("h_res", from_part[..., m:, :]))

    def post(self, state, y, ctx, scope):
        beta, res = ctx
        parts, y_parts = (streams.split_streams(x, self.config.fractions) for x in (state, y))
        after = streams.mix(parts, res) + streams.write(y_parts, beta)
        return after.join().astype(state.dtype)

    def _coefficients(self, parts):
        """[Y | A], (..., m, 2 m), and B, (..., m)."""
        dtype = self.policy.accumulate
        alpha, beta = self.static_alpha[...].astype(dtype), self.static_beta[...].astype(dtype)
        if not self.config.dynamic:
            return alpha, beta
        alpha, beta = self.dynamic(parts.each(layer_norm), alpha, beta[:, None], tanh=self.config.tanh)
        return alpha, beta[..., 0]
