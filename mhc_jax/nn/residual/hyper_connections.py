"""Hyper-connections: unconstrained read, mix and write coefficients from each stream, with fractions and views."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, constant, ones
from mhc_jax.nn.residual.alpha_beta import AlphaBeta
from mhc_jax.nn.residual.mhc import StreamsConfig, own_stream
from mhc_jax.ops import streams
from mhc_jax.ops.norm import layer_norm
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("residual", "hc")
@dataclasses.dataclass(frozen=True)
class HyperConnectionsConfig(StreamsConfig):
    """Hyper-connections (2409.19606), with the generalisations in the code of lucidrains and tokenbender.

    With one fraction it starts as the plain residual. With several, every fraction of a stream receives a sum over all
    fractions of the branch's output, as in the published code, so that no initial value makes it a plain residual;
    ``"frac"`` has the form of the paper on fractions.

    Attributes:
        streams: number of parallel streams S.
        fractions: number F of parts into which the width is cut; all parts of all streams mix with each other.
        views: number of reads per site.
        dynamic: whether coefficients depend on the token; otherwise only their static parts remain (SHC).
        tanh: whether a tanh bounds the dynamic part.
        norm: norm of the input of the dynamic coefficients: ``"rms"`` with a gain (published code), or ``"ln"`` without
            gain and bias (paper).
        mixed: whether the output is added to the mixed streams; tokenbender's code discards these and adds it to the
            unmixed streams.
        fraction_init: ``"identity"`` starts with reads of one stream and no mixing. ``"published"`` stores the same
            numbers in another layout than the one in which they are read; the two agree for one fraction.
    """

    fractions: int = 1
    views: int = 1
    dynamic: bool = True
    tanh: bool = True
    norm: Literal["rms", "ln"] = "rms"
    mixed: bool = True
    fraction_init: Literal["identity", "published"] = "identity"

    def validate(self):
        super().validate()
        self.require(self.fractions >= 1, f"fractions must be at least 1, got {self.fractions}")
        self.require(self.views >= 1, f"views must be at least 1, got {self.views}")

    def build(self, width, policy, init):
        check_fractions(self, width)
        return HyperConnections(self, width, policy, init)


class HyperConnections(AlphaBeta):
    """S streams. Coefficients act between the S * F pieces of a token, piece f * S + s.

    Row p of ``alpha`` has the weights of piece p in all F * (v + S) results. Result f * (v + S) + t is fraction f of
    view t if t < v, else of stream t - v. Entry ``[f * S + s, g]`` of ``beta`` is the weight of fraction f of the
    branch in fraction g of stream s.
    """

    def __init__(self, config: HyperConnectionsConfig, width: int, policy: Policy, init: Init):
        S, F, results = config.streams, config.fractions, (config.streams + config.views) * config.fractions
        self.config, self.policy, self.views = config, policy, config.views
        alpha = constant(_initial_alpha(config, own_stream(init, S)))
        self.static_alpha = init("static_alpha", alpha, S * F, results, role="vector", axes=("stream", "coefficient"))
        self.static_beta = init("static_beta", ones, S * F, axes=("stream",))
        if config.dynamic:
            self.add_dynamic_part(init, width // F, results, (F,), rms=config.norm == "rms")

    def pre(self, state, scope):
        F = self.config.fractions
        pieces = state.fractions(F)
        read, post, res = self._coefficients(pieces)
        # Without views and fractions the taps are (..., S), as in the other topologies.
        read = scope.tap("h_pre", read[..., 0, :])[..., None, :] if self.views == F == 1 else scope.tap("h_pre", read)
        post = scope.tap("h_post", post[..., 0, :])[..., None, :] if F == 1 else scope.tap("h_post", post)
        reads = streams.mix(pieces, read).join_fractions(F)
        u = reads.total() if self.views == 1 else jnp.moveaxis(reads.stack(), -2, 0)
        return u, (scope.tap("h_res", res) if self.config.mixed else None, post)

    def post(self, state, y, ctx, scope):
        (res, weight), F = ctx, self.config.fractions
        mixed = state
        if res is not None:
            mixed = streams.mix(state.fractions(F), res).join_fractions(F)
        return (mixed + self._written(y, weight)).astype(state.dtype)

    def _written(self, y, weight):
        """Additions to the streams: fraction g of stream s gains ``sum_f weight[f, g * S + s] * y_f``.

        ``y_f`` is fraction f of y.
        """
        S, F = self.config.streams, self.config.fractions
        if F == 1:
            return streams.write(y, weight[..., 0, :])
        to_piece = jnp.swapaxes(weight, -1, -2)
        if not isinstance(y, streams.Streams):
            return streams.mix(streams.split_streams(y, F), to_piece).join_fractions(F)
        # Fractions of stream s reach only stream s.
        own = jnp.tile(jnp.eye(S, dtype=weight.dtype), (F, 1))[:, None]
        matrix = (to_piece[..., None] * own).reshape(*to_piece.shape[:-1], F * S)
        return streams.mix(y.fractions(F), matrix).join_fractions(F)

    def _coefficients(self, pieces):
        """H_pre (..., F * v, F * S), H_post (..., F, F * S) and H_res (..., F * S, F * S)."""
        S, F, v = self.config.streams, self.config.fractions, self.config.views
        dtype = self.policy.accumulate
        alpha = self.static_alpha[...].astype(dtype)
        beta = jnp.tile(self.static_beta[...].astype(dtype).reshape(S, F), (F, 1))
        if self.config.dynamic:
            x = pieces if self.config.norm == "rms" else pieces.astype(dtype).each(layer_norm)
            alpha, beta = self.dynamic(x, alpha, beta, tanh=self.config.tanh)
        to_result = jnp.swapaxes(alpha, -1, -2).reshape(*alpha.shape[:-2], F, v + S, F * S)
        read, res = to_result[..., :v, :], to_result[..., v:, :]
        read, res = (part.reshape(*part.shape[:-3], -1, F * S) for part in (read, res))
        from_fraction = jnp.swapaxes(beta.reshape(*beta.shape[:-2], F, S, F), -1, -2)
        return read, from_fraction.reshape(*beta.shape[:-2], F, F * S), res


def check_fractions(config: HyperConnectionsConfig, width: int) -> None:
    """Raises ConfigError unless the width can be cut into the fractions."""
    config.require(
        width % config.fractions == 0, f"a width of {width} cannot be cut into {config.fractions} equal fractions"
    )


def _initial_alpha(config: HyperConnectionsConfig, own_S: jax.Array) -> jax.Array:
    S, F, v = config.streams, config.fractions, config.views
    if config.fraction_init == "published":
        own_row = jnp.pad(own_S, (0, S * (F - 1)))[:, None]
        return jnp.concatenate([jnp.tile(own_row, (1, v * F)), jnp.eye(S * F)], axis=-1)
    one_fraction = jnp.concatenate([jnp.tile(own_S[:, None], (1, v)), jnp.eye(S)], axis=-1)
    return jnp.kron(jnp.eye(F), one_fraction)
