"""The contract of a norm: how a vector of activations is brought to scale."""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from mhc_jax.config import Config
from mhc_jax.nn.init import Init
from mhc_jax.registry import required


class Norm(nnx.Module):
    """Maps (..., D) to (..., D), each vector alone, in the dtype of its input.

    Attributes:
        fusible: whether a kernel can hold it: it takes vectors (tokens, D) and parameters (1, D) or (1, 1), and has no
            other arrays.
    """

    fusible: bool = False

    @required
    def __call__(self, x: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class NormConfig(Config):
    """Base of all norm configurations."""

    axis: ClassVar[str] = "norm"

    def with_bias(self) -> "NormConfig":
        """The same norm with a bias, if its kind can have one."""
        return self

    @required
    def build(self, width: int, init: Init, channels: str = "width") -> Norm:
        """The norm of vectors of that width.

        Args:
            channels: name of the dimension of its parameters; see :mod:`mhc_jax.nn.init`.
        """
