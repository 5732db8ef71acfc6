"""Base of the hyper-connections: alpha reads and mixes, beta writes, and each row depends on one stream only."""

import jax
import jax.numpy as jnp

from mhc_jax.nn.init import Init, constant, zeros
from mhc_jax.nn.residual.base import Residual
from mhc_jax.nn.residual.mhc import UnitGain
from mhc_jax.ops import hyper
from mhc_jax.ops.streams import Streams


class AlphaBeta(Residual):
    """A site whose coefficients are ``static + scale * act(norm(x) @ fn)``; parameters have their published names."""

    def add_dynamic_part(self, init: Init, width: int, alpha_columns: int, beta_shape: tuple[int, ...], *, rms: bool):
        """Creates the parameters of the dynamic part, which starts at zero.

        Args:
            width: width of one stream of x.
            beta_shape: shape of ``dynamic_beta_fn`` after its first axis, which is the width.
            rms: whether to create the gain of the unit RMS norm.
        """
        beta_axes = ("features", *("coefficient" for _ in beta_shape))
        self.dynamic_alpha_fn = init(
            "dynamic_alpha_fn", zeros, width, alpha_columns, role="mixing", axes=("features", "coefficient")
        )
        self.dynamic_alpha_scale = init("dynamic_alpha_scale", constant(0.01))
        self.dynamic_beta_fn = init("dynamic_beta_fn", zeros, width, *beta_shape, role="mixing", axes=beta_axes)
        self.dynamic_beta_scale = init("dynamic_beta_scale", constant(0.01))
        self.norm = UnitGain(width, init / "norm") if rms else None

    def dynamic(self, x: Streams, alpha: jax.Array, beta: jax.Array, *, tanh: bool) -> tuple[jax.Array, jax.Array]:
        """Static alpha (R, C) and beta (R, W) plus their dynamic parts: (..., R, C) and (..., R, W), from one product.

        Args:
            x: R streams; normalised, unless the site has the gain of the unit RMS norm.
        """
        leaves = (self.dynamic_alpha_fn, self.dynamic_beta_fn, self.dynamic_alpha_scale, self.dynamic_beta_scale)
        alpha_fn, beta_fn, alpha_scale, beta_scale = (leaf[...].astype(alpha.dtype) for leaf in leaves)
        C, W = alpha.shape[-1], beta.shape[-1]
        weights = hyper.dynamic_weights(
            x,
            jnp.concatenate([alpha_fn, beta_fn.reshape(-1, W)], axis=-1),
            jnp.concatenate([jnp.broadcast_to(alpha_scale, C), jnp.broadcast_to(beta_scale, W)]),
            jnp.concatenate([alpha, beta], axis=-1),
            tanh=tanh,
            gamma_D=None if self.norm is None else self.norm.gamma[...].astype(alpha.dtype),
        )
        return weights[..., :C], weights[..., C:]
