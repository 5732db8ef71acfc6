"""Where parameters are born: a key and a path, so that a draw depends on the parameter's name alone.

Adding or reordering modules therefore leaves the initial values of all others unchanged.
"""

import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

Initializer = Callable[[jax.Array, tuple[int, ...]], jax.Array]


class Init:
    """Creates ``nnx.Param`` leaves under one path.

    Attributes:
        index: which layer is being built or, inside a site, which site of the model, counted from 0 (may be traced).
        sites: number of sites in the whole model.
    """

    def __init__(self, key: jax.Array, path: str = "", index: ArrayLike = 0, sites: int = 1):
        self.key, self.path, self.index, self.sites = key, path, index, sites

    def __truediv__(self, name: str) -> "Init":
        """The same key one level deeper: ``init / "mixer"``."""
        return Init(self.key, f"{self.path}/{name}", self.index, self.sites)

    def at(self, index: ArrayLike) -> "Init":
        """The same key and path for another ``index``."""
        return Init(self.key, self.path, index, self.sites)

    def __call__(self, name: str, initializer: Initializer, *shape: int) -> nnx.Param:
        """A float32 parameter; its random draw depends on the key and on path and name."""
        key = jax.random.fold_in(self.key, zlib.crc32(f"{self.path}/{name}".encode()))
        return nnx.Param(initializer(key, shape).astype(jnp.float32))


def normal(std: float, mean: float = 0.0) -> Initializer:
    return lambda key, shape: mean + std * jax.random.normal(key, shape)


def uniform(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for Linear and Conv weights and biases."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def constant(value: ArrayLike) -> Initializer:
    """A fixed value, broadcast to the shape."""
    return lambda key, shape: jnp.broadcast_to(jnp.asarray(value, jnp.float32), shape)


zeros, ones = constant(0.0), constant(1.0)
