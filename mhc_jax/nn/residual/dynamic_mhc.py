"""Dynamic mHC: every coefficient depends on all streams of the token, and the mixing matrix is projected."""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mhc_jax.config import within
from mhc_jax.nn.deferred import projected
from mhc_jax.nn.init import Init, constant, normal
from mhc_jax.nn.projections import ProjectionConfig, SinkhornConfig
from mhc_jax.nn.residual.mhc import DIAGONAL_BIAS, MHC, READ_LEAN, MHCConfig, own_stream, reading_logits
from mhc_jax.nn.scope import Scope
from mhc_jax.ops import hyper
from mhc_jax.precision import Policy
from mhc_jax.registry import register


@register("residual", "dynamic_mhc")
@dataclasses.dataclass(frozen=True)
class DynamicMHCConfig(MHCConfig):
    """Manifold-constrained hyper-connections (2512.24880). The default starts as the plain residual.

    The published variants differ in their projection: ``"sinkhorn"`` is the paper's, ``"deepseek_sinkhorn"``
    DeepSeek-V4's (with ``bias="zeros", alpha=1, phi_std=0.02, pre_eps=1e-6``), ``"identity"`` iHC (Hy-V4, with
    ``phi_std=0.006, read_lean=0, pre_eps=1e-6, post_eps=1e-6``), ``"permutations"`` mHC-lite, ``"kronecker"`` KromHC,
    ``"spectral_sphere"`` sHC, ``"circulant"`` C-mHC.

    Attributes:
        projection: map from the residual logits to H_res.
        alpha: initial gain of each of the three dynamic parts.
        phi_std: standard deviation of the initial phi.
        norm_eps: epsilon of the root mean square over all streams.
        pre_eps, post_eps: constants added to the reading and writing weights.
        post_gain: the largest writing weight.
        read_lean: initial reading weight of stream (site mod n), which lets the streams separate; the remaining streams
            share the rest of 1. Values up to 1/n mean equal weights.
        diagonal_bias: closeness of the initial H_res to the identity, as a logit; 4 means a diagonal of 0.95 for n = 4.
        bias: ``"near_identity"`` starts with reads that sum to one, writes of one, and H_res near the identity;
            ``"zeros"`` with reads of 1/2, writes of ``post_gain / 2`` and H_res of 1/n.
    """

    projection: ProjectionConfig = SinkhornConfig()
    alpha: float = 0.01
    phi_std: float = 0.0
    norm_eps: float = 1e-6
    pre_eps: float = 0.0
    post_eps: float = 0.0
    post_gain: float = 2.0
    read_lean: float = READ_LEAN
    diagonal_bias: float = DIAGONAL_BIAS
    bias: Literal["near_identity", "zeros"] = "near_identity"

    def validate(self):
        super().validate()
        self.projection.check(self.streams)
        self.require_not_negative("norm_eps", "pre_eps", "post_eps", "phi_std")
        self.require(self.read_lean <= 1, f"read_lean must be at most 1, got {self.read_lean}")
        self.require(
            self.bias == "zeros" or 0 < 1 - self.post_eps < self.post_gain,
            f"writes of 1 lie outside (post_eps, post_eps + post_gain) = ({self.post_eps}, "
            f"{self.post_eps + self.post_gain}); raise post_gain, or take bias 'zeros'",
        )

    def check_kernels(self, width, policy):
        super().check_kernels(width, policy)
        if self.implementation == "pallas" and not self.projection.is_identity(self.streams):
            with within("projection"):
                self.projection.check_kernels(self.streams)

    def build(self, width, policy, init):
        return DynamicMHC(self, width, policy, init)


class DynamicMHC(MHC):
    """``logits = alpha * flat_weights(X, phi) + bias`` in three groups: n for H_pre, n for H_post, the rest for H_res.

    ``H_pre = sigmoid + pre_eps``, ``H_post = post_gain * sigmoid + post_eps``, ``H_res = project``.
    """

    defers = True

    def __init__(self, config: DynamicMHCConfig, width: int, policy: Policy, init: Init):
        n = config.streams
        self.config, self.policy = config, policy
        # Number of logits of each of the three parts; some projections need no residual logits.
        self.sizes = n, n, config.projection.size(n)
        count, parts = sum(self.sizes), sum(size > 0 for size in self.sizes)
        draw, axes = normal(config.phi_std), ("coefficient", "streams")
        self.phi = init("phi", draw, count, n * width, role="mixing", axes=axes)
        self.bias = init("bias", constant(_initial_bias(config, init)), count, axes=("coefficient",))
        self.alpha = init("alpha", constant(config.alpha), parts, axes=("coefficient",))

    def pre(self, state, scope, norm=None):
        gates = self._gates()
        # A subclass may have coefficients of its own.
        is_known = type(self).coefficients is DynamicMHC.coefficients
        if gates is not None and is_known and scope.taps is None:
            from mhc_jax.kernels import coefficients as kernels  # Pallas takes long to import

            params, behind = self._params(), self.behind(norm)
            if kernels.can_read(state, params[0], behind, gates):
                u_BTD, mixed, post_BTN = kernels.read(state, *params, gates, behind, **self._options(scope))
                return u_BTD, (post_BTN, mixed)
        return super().pre(state, scope, norm)

    def coefficients(self, h, scope):
        config, n = self.config, self.config.streams
        gates = self._gates()
        if gates is not None:
            from mhc_jax.kernels import coefficients as kernels

            params = self._params()
            if kernels.can_project(h, params[0]):
                h, numbers_BTC = kernels.project(h, *params, gates, **self._options(scope))
                pre_BTN, post_BTN, res_BTM = jnp.split(numbers_BTC, [n, 2 * n], axis=-1)
                return h, (pre_BTN, post_BTN, res_BTM.reshape(*res_BTM.shape[:-1], n, n))
        phi_KM, scale_K, bias_K = self._params()
        h, weights_BTK = projected(h, functools.partial(hyper.flat_weights, eps=config.norm_eps), phi_KM)
        logits_BTK = scale_K * weights_BTK + bias_K
        pre_BTN, post_BTN = self._reading(logits_BTK[..., :n]), self._writing(logits_BTK[..., n : 2 * n])
        if config.projection.is_identity(n):
            return h, (pre_BTN, post_BTN, None)
        res_logits = logits_BTK[..., 2 * n :].reshape(*logits_BTK.shape[:-1], *config.projection.shape(n))
        if config.implementation == "pallas" and config.projection.has_own("project_by_kernel"):
            res_BTNN = config.projection.project_by_kernel(res_logits, n, scope.batch_sharding)
        else:
            res_BTNN = config.projection.project(res_logits, n)
        return h, (pre_BTN, post_BTN, res_BTNN)

    def _params(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """phi (K, M), and scale and bias (K,) of the logits."""
        dtype = self.policy.accumulate
        phi_KM, bias_K, alpha = (leaf[...].astype(dtype) for leaf in (self.phi, self.bias, self.alpha))
        return phi_KM, alpha[np.repeat(range(3), self.sizes)], bias_K

    def _options(self, scope: Scope) -> dict[str, Any]:
        return {"eps": self.config.norm_eps, "batch_sharding": scope.batch_sharding}

    def _reading(self, logits: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(logits) + self.config.pre_eps

    def _writing(self, logits: jax.Array) -> jax.Array:
        return self.config.post_gain * jax.nn.sigmoid(logits) + self.config.post_eps

    def _gates(self) -> Any:
        """What makes all coefficients of their logits in one kernel; None where they have none."""
        config, n = self.config, self.config.streams
        if config.implementation != "pallas" or config.projection.is_identity(n):
            return None
        projection = config.projection.entrywise(n) if config.projection.has_own("entrywise") else None
        if projection is None:
            return None
        from mhc_jax.kernels.gates import Gates

        def gates(logits):
            read, write, mixing = logits[:n], logits[n : 2 * n], logits[2 * n :]
            return [*map(self._reading, read), *map(self._writing, write), *projection.of(mixing)]

        return Gates(gates, n, projection.iters, projection.half_steps)


def _initial_bias(config: DynamicMHCConfig, init: Init) -> jax.Array:
    n = config.streams
    if config.bias == "zeros":
        return jnp.zeros(2 * n + config.projection.size(n))
    share = (1 - config.post_eps) / config.post_gain
    write = jnp.full(n, math.log(share / (1 - share)))
    mixing = config.projection.near_identity(n, config.diagonal_bias).flatten()
    return jnp.concatenate([reading_logits(own_stream(init, n), config.read_lean), write, mixing])
