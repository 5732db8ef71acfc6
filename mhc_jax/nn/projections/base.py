"""The contract of a projection, which maps free logits to the mixing matrix of a site."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mhc_jax.config import Config
from mhc_jax.ops.sinkhorn import ORDERS, HalfSteps
from mhc_jax.registry import required

# Errors of float32: of sums that one division makes, and of those that iterations only approach.
EXACT, NEAR = 1e-5, 0.02


@dataclasses.dataclass(frozen=True)
class Promise:
    """What holds of every matrix of a projection, each as the largest error; None where nothing is promised.

    Attributes:
        rows, columns: distance of the sum of a row, or of a column, from 1.
        negative: of an entry below 0.
        orthogonal: distance of an entry of H H^T from the identity's.
        norm: excess of the spectral norm over 1.
        shrinking: distance of the least singular value below 1.
    """

    rows: float | None = None
    columns: float | None = None
    negative: float | None = None
    orthogonal: float | None = None
    norm: float | None = None
    shrinking: float | None = None


DOUBLY_STOCHASTIC = Promise(rows=EXACT, columns=EXACT, negative=0.0)


class Entrywise(NamedTuple):
    """A projection on the entries of its logits, each an array over tokens.

    Attributes:
        of: to the entries of the matrix row by row, or to logits of Sinkhorn's iterations.
        iters, half_steps: of these, if there are any.
    """

    of: Callable[[Sequence[jax.Array]], list[jax.Array]]
    iters: int = 0
    half_steps: HalfSteps = ORDERS["columns_then_rows"]


@dataclasses.dataclass(frozen=True)
class ProjectionConfig(Config):
    """Base of all projections. Unless a subclass says otherwise there is one logit for each entry of the matrix."""

    axis: ClassVar[str] = "projection"

    def check(self, streams: int) -> None:
        """Raises ConfigError if there is no such projection for that many streams."""

    def check_kernels(self, streams: int) -> None:
        """Raises ConfigError if :meth:`project_by_kernel` has a kernel, but none for that many streams."""

    def shape(self, streams: int) -> tuple[int, ...]:
        """Shape of the logits, without leading axes; some dimension is 0 when there are none."""
        return streams, streams

    def size(self, streams: int) -> int:
        """Number of logits."""
        return math.prod(self.shape(streams))

    @property
    def promise(self) -> Promise:
        """What its matrices keep to; by default they are doubly stochastic.

        Sums that iterations only approach are promised for logits of a few units.
        """
        return DOUBLY_STOCHASTIC

    def is_identity(self, streams: int) -> bool:
        """Whether the matrix is the identity for all logits; by default for a single stream, as rows sum to one."""
        return streams == 1

    def near_identity(self, streams: int, strength: float) -> jax.Array:
        """Logits whose matrix is near the identity, the nearer the greater ``strength``."""
        return strength * jnp.eye(streams)

    @required
    def project(self, logits: jax.Array, streams: int) -> jax.Array:
        """The matrices (..., N, N): row i weighs the sources of stream i."""

    def project_by_kernel(
        self, logits: jax.Array, streams: int, batch_sharding: jax.sharding.Sharding | None
    ) -> jax.Array:
        """:meth:`project` for the logits of all tokens, (B, T, ...), by a kernel if the projection has one."""
        return self.project(logits, streams)

    def has_own(self, form: str) -> bool:
        """Whether the method ``form``, another way to project, belongs to this projection.

        It does not if :meth:`project` is of a class below that of the method.
        """
        return next(form in vars(of) for of in type(self).__mro__ if {form, "project"} & vars(of).keys())

    def entrywise(self, streams: int) -> Entrywise | None:
        """The projection in the form that kernels of whole sites compute; None if there is none."""
        return None
