"""mHC whose coefficients depend on one stream each, as in lucidrains' package ``hyper-connections``."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, constant, zeros
from mhc_jax.nn.projections import ClampedSinkhornConfig, ProjectionConfig
from mhc_jax.nn.residual.mhc import (
    DIAGONAL_BIAS,
    MHC,
    READ_LEAN,
    MHCConfig,
    UnitGain,
    own_stream,
    reading_logits,
)
from mhc_jax.ops import hyper
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("residual", "per_stream_mhc")
@dataclasses.dataclass(frozen=True)
class PerStreamMHCConfig(MHCConfig):
    """mHC of the package ``hyper-connections`` (versions 1 and 2 agree here): one map for all streams.

    Attributes:
        streams: number of parallel streams n.
        projection: map from n * n residual logits to H_res.
        form: ``"near_identity"`` starts as the plain residual. ``"published"`` applies sigmoid and Sinkhorn to the
            initial values of unconstrained hyper-connections. For n = 4 it therefore starts with reads of 0.73 and 0.5,
            writes of 1.46, and 0.475 on the diagonal of H_res.
    """

    projection: ProjectionConfig = ClampedSinkhornConfig()
    form: Literal["near_identity", "published"] = "near_identity"

    def validate(self):
        super().validate()
        self.projection.check(self.streams)
        self.require(
            self.projection.shape(self.streams) == (self.streams, self.streams),
            f"every stream gives a row of logits, and the projection {self.projection.kind!r} takes no such matrix",
        )

    def build(self, width, policy, init):
        return PerStreamMHC(self, width, policy, init)


class PerStreamMHC(MHC):
    """``alpha_static[s] + scale * norm(X_s) @ alpha_fn`` has the reading logit of stream s, then column s for H_res.

    ``H_pre = sigmoid``, ``H_res = project``; ``beta_static[s] + post_scale * norm(X_s) @ beta_fn`` gives
    ``H_post[s] = 2 sigmoid``.
    """

    def __init__(self, config: PerStreamMHCConfig, width: int, policy: Policy, init: Init):
        n = config.streams
        self.config, self.policy = config, policy
        own_N, published = own_stream(init, n), config.form == "published"
        read = own_N if published else reading_logits(own_N, READ_LEAN)
        mixing = jnp.eye(n) if published else config.projection.near_identity(n, DIAGONAL_BIAS)
        alpha = jnp.concatenate([read[:, None], jnp.swapaxes(mixing, 0, 1)], axis=1)
        self.alpha_fn = init("alpha_fn", zeros, width, 1 + n, role="mixing", axes=("features", "coefficient"))
        start, axes = constant(alpha), ("stream", "coefficient")
        self.alpha_static = init("alpha_static", start, n, 1 + n, role="vector", axes=axes)
        self.beta_fn = init("beta_fn", zeros, width, role="mixing", axes=("features",))
        self.beta_static = init("beta_static", constant(float(published)), n, axes=("stream",))
        for name in ("pre_scale", "res_scale", "post_scale"):
            setattr(self, name, init(name, constant(0.01)))
        self.norm = UnitGain(width, init / "norm")

    def coefficients(self, h, scope):
        dtype, n = self.policy.accumulate, self.config.streams
        read_scale, res_scale, post_scale = (
            leaf[...].astype(dtype) for leaf in (self.pre_scale, self.res_scale, self.post_scale)
        )
        alpha_fn, alpha, beta_fn, beta = (
            leaf[...].astype(dtype) for leaf in (self.alpha_fn, self.alpha_static, self.beta_fn, self.beta_static)
        )
        # Columns: read, the N of H_res, write.
        fn_DK, static_NK = (jnp.concatenate([a, b[:, None]], axis=1) for a, b in ((alpha_fn, beta_fn), (alpha, beta)))
        scale_K = jnp.concatenate([read_scale[None], jnp.broadcast_to(res_scale, n), post_scale[None]])
        gamma_D = self.norm.gamma[...].astype(dtype)
        logits = hyper.dynamic_weights(h, fn_DK, scale_K, static_NK, tanh=False, gamma_D=gamma_D)
        pre_BTN, post_BTN = jax.nn.sigmoid(logits[..., 0]), 2 * jax.nn.sigmoid(logits[..., -1])
        if self.config.projection.is_identity(n):
            return h, (pre_BTN, post_BTN, None)
        # Row s has the weights of stream s in all destinations.
        return h, (pre_BTN, post_BTN, self.config.projection.project(jnp.swapaxes(logits[..., 1:-1], -1, -2), n))
