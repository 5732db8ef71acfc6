"""Base of the topologies with coefficients for reading, mixing and writing streams."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.special import logit

from mhc_jax.backend import stated_backend
from mhc_jax.nn.deferred import Deferred
from mhc_jax.nn.init import Init, zeros
from mhc_jax.nn.norms.base import Norm
from mhc_jax.nn.residual.base import Residual, ResidualConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.ops import streams
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import Policy
from mhc_jax.registry import required

# Initial values of a site: the reading weight of its own stream, and how close H_res is to the identity (a logit).
READ_LEAN, DIAGONAL_BIAS = 0.7, 4.0


@dataclasses.dataclass(frozen=True)
class StreamsConfig(ResidualConfig):
    """Base of the topologies with parallel streams.

    Attributes:
        streams: number of parallel streams n.
    """

    streams: int = 4

    @property
    def stream_count(self):
        return self.streams

    def validate(self):
        super().validate()
        self.require(self.streams >= 1, f"streams must be at least 1, got {self.streams}")


@dataclasses.dataclass(frozen=True)
class MHCConfig(StreamsConfig):
    """Base of the configurations of :class:`MHC`.

    Attributes:
        streams: number of parallel streams n.
        implementation: how streams are read, mixed and written: ``"xla"``, or ``"pallas"`` for the fused kernels of
            TPUs and GPUs, see :mod:`mhc_jax.kernels.streams`. Where logits of H_res come from all streams of the token,
            the projection runs in a kernel too if it has one, on GPUs for streams in bfloat16.
    """

    implementation: Literal["xla", "pallas"] = "xla"

    def check_kernels(self, width, policy):
        if self.implementation == "pallas":
            from mhc_jax.kernels.streams import fault  # Pallas takes long to import

            found = fault(self.streams, width, policy.streams, stated_backend())
            self.require(not found, f"implementation 'pallas': {found}")


class MHC(Residual):
    """N streams: ``u = sum_i pre_i X_i``, ``X'_i = sum_j res[i, j] X_j + post_i Y_i``."""

    config: MHCConfig
    policy: Policy
    # Whether coefficients come from nothing or a projection of the streams, so that a write can wait for the next site.
    defers: ClassVar[bool] = False

    @property
    def fuses_norm(self):
        return self.config.implementation == "pallas"

    @required
    def coefficients(
        self, h: Streams | Deferred, scope: Scope
    ) -> tuple[Streams | Deferred, tuple[jax.Array, jax.Array, jax.Array | None]]:
        """The streams, computed if that was needed, and their weights, ready for use.

        These are H_pre (..., N), H_post (..., N) and H_res (..., N, N), of which row i feeds stream i. None stands for
        an H_res that is the identity by construction: the streams are not mixed.
        """

    def pre(self, state, scope, norm=None):
        return self.read_with(*self.coefficients(state, scope), scope, norm)

    def read_with(
        self,
        h: Streams | Deferred,
        coefficients: tuple[jax.Array, jax.Array, jax.Array | None],
        scope: Scope,
        norm: Norm | None,
    ) -> tuple[jax.Array, Any]:
        """The result of :meth:`pre` for given coefficients."""
        pre_N, post_N, res_NN = coefficients
        pre_N, post_N = scope.tap("h_pre", pre_N), scope.tap("h_post", post_N)
        res_NN = None if res_NN is None else scope.tap("h_res", res_NN)
        if self.config.implementation == "pallas":
            from mhc_jax.kernels import streams as kernels  # Pallas takes long to import

            u_BTD, mixed = kernels.read(h, pre_N, res_NN, norm=self.behind(norm), batch_sharding=scope.batch_sharding)
            return u_BTD, (post_N, mixed)
        return streams.read(h, pre_N), (post_N, res_NN)

    def behind(self, norm: Norm | None) -> Any:
        """That norm as kernels of streams take it."""
        from mhc_jax.kernels.streams import AS_IT_IS, Normalised

        return AS_IT_IS if norm is None else Normalised(*_pure(norm), self.policy.compute)

    def post(self, state, y, ctx, scope):
        if self.config.implementation == "pallas":
            from mhc_jax.kernels import streams as kernels

            post_N, mixed = ctx
            after = kernels.Pending(mixed, y, post_N)
            return after if self.defers and not isinstance(y, Streams) else after.computed()
        post_N, res_NN = ctx
        mixed = state if res_NN is None else streams.mix(state, res_NN)
        return (mixed + streams.write(y, post_N)).astype(state.dtype)


def _pure(norm: Norm) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]:
    """A norm as a function of its input and its parameters, and these."""
    graph, state = nnx.split(norm, nnx.Param)
    params, tree = jax.tree.flatten(state)
    return lambda x, *params: nnx.merge(graph, jax.tree.unflatten(tree, params))(x), tuple(params)


class UnitGain(nnx.Module):
    """The gain minus one of the :func:`mhc_jax.ops.norm.unit_rms_norm` before a product with the streams."""

    def __init__(self, width: int, init: Init):
        self.gamma = init("gamma", zeros, width, axes=("features",))


def own_stream(init: Init, streams: int) -> jax.Array:
    """One-hot vector of the stream that a site favours in reading; it changes by site, so that streams can separate."""
    return jax.nn.one_hot(jnp.asarray(init.index) % streams, streams)


def reading_weights(own_N: jax.Array, lean: float) -> jax.Array:
    """Weights that sum to one, of which the site's own stream has ``lean``, but at least 1/n."""
    n = own_N.shape[-1]
    share = max(lean, 1 / n)
    return jnp.where(own_N > 0, share, (1 - share) / max(n - 1, 1))


def reading_logits(own_N: jax.Array, lean: float) -> jax.Array:
    """Logits whose sigmoids are the :func:`reading_weights`, capped just below one."""
    return logit(jnp.minimum(reading_weights(own_N, lean), 1 - 1e-6))
