"""The contract of a projection, which maps free logits to the mixing matrix of a site."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from mhc_jax.config import Config
from mhc_jax.registry import required


@dataclasses.dataclass(frozen=True)
class ProjectionConfig(Config):
    """Base of all projections. Unless a subclass says otherwise there is one logit for each entry of the matrix."""

    axis: ClassVar[str] = "projection"

    def check(self, streams: int) -> None:
        """Raises ConfigError if there is no such projection for that many streams."""

    def shape(self, streams: int) -> tuple[int, ...]:
        """Shape of the logits, without leading axes; some dimension is 0 when there are none."""
        return streams, streams

    def size(self, streams: int) -> int:
        """Number of logits."""
        return math.prod(self.shape(streams))

    def is_identity(self, streams: int) -> bool:
        """Whether the matrix is the identity for all logits; by default for a single stream, as rows sum to one."""
        return streams == 1

    def near_identity(self, streams: int, strength: float) -> jax.Array:
        """Logits whose matrix is near the identity, the nearer the greater ``strength``."""
        return strength * jnp.eye(streams)

    @required
    def project(self, logits: jax.Array, streams: int) -> jax.Array:
        """The matrices (..., N, N): row i weighs the sources of stream i."""
