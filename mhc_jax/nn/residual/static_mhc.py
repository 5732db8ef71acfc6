"""Static mHC: reading and writing weights on the simplex and one projected mixing matrix, equal for all tokens."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, constant, normal, zeros
from mhc_jax.nn.projections import ProjectionConfig, SinkhornConfig
from mhc_jax.nn.residual.mhc import DIAGONAL_BIAS, MHC, MHCConfig, own_stream
from mhc_jax.nn.stack import Prepared, Preparing
from mhc_jax.ops import projections
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("residual", "static_mhc")
@dataclasses.dataclass(frozen=True)
class StaticMHCConfig(MHCConfig):
    """One learned H_pre and H_post (on the simplex) and H_res (projected) per site.

    The defaults start as the plain residual. The original of mHC-SSM is ``SinkhornConfig(iters=8,
    order="rows_then_columns", domain="exp")`` with ``unit_writes=False, diagonal_bias=0, read_bias=0, noise=0.02``:
    its H_res is about 1/n everywhere, so the first block averages the streams away. The original of tokenbender's
    mHC is ``SinkhornConfig(iters=10, temperature=0.05)`` with ``unit_writes=False, diagonal_bias=8, read_bias=8``:
    its H_res is the identity to machine precision, and gets no gradient.

    Attributes:
        streams: number of parallel streams n. With one stream the site is the plain residual.
        projection: map from the residual logits to H_res.
        unit_writes: whether the writing weights sum to n, so that the mean stream receives the whole branch.
        diagonal_bias: closeness of the initial H_res to the identity, as a logit; 4 means a diagonal of 0.95 for n = 4.
        res_offset: constant added to all initial residual logits. It has an effect only on projections that depend on
            more than the differences of logits: tokenbender's orthostochastic form starts at -8 off the diagonal and
            at 0 on it.
        read_bias: initial extra reading logit of stream (site mod n), which lets the streams separate.
        noise: standard deviation of the noise added to the initial residual logits.
        identity_mix: initial share a of H_res in ``(1 - a) I + a H_res``; a is learned. 0 disables the form.
    """

    projection: ProjectionConfig = SinkhornConfig()
    unit_writes: bool = True
    diagonal_bias: float = DIAGONAL_BIAS
    res_offset: float = 0.0
    read_bias: float = 1.0
    noise: float = 0.0
    identity_mix: float = 0.0

    def validate(self):
        super().validate()
        self.projection.check(self.streams)
        self.require_not_negative("noise")
        self.require(0 <= self.identity_mix < 1, f"identity_mix must lie in [0, 1), got {self.identity_mix}")

    def build(self, width, policy, init):
        return StaticMHC(self, policy, init)


class StaticMHC(MHC, Preparing):
    """``H_pre = softmax(pre)``, ``H_post = softmax(post)`` (times n with unit writes), ``H_res = project(res)``."""

    defers = True
    res_NN: Prepared | None = None

    def __init__(self, config: StaticMHCConfig, policy: Policy, init: Init):
        n, projection = config.streams, config.projection
        self.config, self.policy = config, policy
        self.pre_logits = init("pre_logits", constant(config.read_bias * own_stream(init, n)), n, axes=("stream",))
        self.post_logits = init("post_logits", zeros, n, axes=("stream",))
        if projection.size(n):
            start = projection.near_identity(n, config.diagonal_bias) + config.res_offset
            draw, shape = normal(config.noise, mean=start), projection.shape(n)
            self.res_logits = init("res_logits", draw, *shape, role="vector", axes=("coefficient",) * len(shape))
        if config.identity_mix and projection.size(n):
            odds = config.identity_mix / (1 - config.identity_mix)
            self.mix_logit = init("mix_logit", constant(math.log(odds)))

    def coefficients(self, h, scope):
        config, dtype = self.config, self.policy.accumulate
        pre_N, post_N = (_simplex(logits[...].astype(dtype)) for logits in (self.pre_logits, self.post_logits))
        if config.unit_writes:
            post_N = config.streams * post_N
        return h, (pre_N, post_N, self._mixing() if self.res_NN is None else self.res_NN[...])

    def prepare(self):
        res_NN = self._mixing()
        return {} if res_NN is None else {"res_NN": res_NN}

    def _mixing(self):
        n, projection, dtype = self.config.streams, self.config.projection, self.policy.accumulate
        if projection.is_identity(n):
            return None
        res_NN = projection.project(self.res_logits[...].astype(dtype), n)
        if not self.config.identity_mix:
            return res_NN
        return projections.identity_mix(res_NN, jax.nn.sigmoid(self.mix_logit[...].astype(dtype)))


def _simplex(logits_N: jax.Array) -> jax.Array:
    """Softmax. For one logit it is a constant, whose zero derivative is then not computed."""
    return jax.nn.softmax(logits_N) if logits_N.size > 1 else jnp.ones_like(logits_N)
