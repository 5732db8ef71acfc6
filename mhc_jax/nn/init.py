"""The creation of parameters, from a key and a path: a draw depends only on the parameter's name.

Adding or reordering modules therefore leaves the initial values of all others unchanged. With its values a parameter
gets what it is: a role, and a name for each of its dimensions. Weight decay, sharding and the count of operations read
these, never the parameter's own name.

Roles:
    kernel: matrix that multiplies activations.
    mixing: matrix from activations to the coefficients by which streams are read, mixed and written.
    table: rows that are looked up.
    filter: weights that pool over time or over streams.
    vector: any other: gains, biases, poles, coefficients that are equal for all tokens.

Names of dimensions:
    vocab, position: rows of a table; what the head gives.
    embed: the model's width in a matrix product.
    heads, mlp, inner, rank: what a product with the model's width gives, in attention, channel mixers, other sequence
        mixers and adapters.
    latent: what is smaller than the model's width, and from which attention makes its heads.
    expert: experts of a mixture.
    channel: channels of a recurrence or a convolution.
    head: channels of one head.
    tap: tokens that a convolution looks at.
    width: the model's width in norms and in the table of positions.
    features: the model's width in what is added to streams or weighs them.
    stream, streams: parallel streams; all of them flattened, with their widths.
    coefficient: weights of a site.

Parts from outside may use other names.
"""

import math
import zlib
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from mhc_jax.config import ConfigError

Initializer = Callable[[jax.Array, tuple[int, ...]], jax.Array]
# Time steps at the start: a state of rate 1 remembers for 10 to 1000 tokens.
STEPS = (1e-3, 1e-1)
Role = Literal["kernel", "mixing", "table", "filter", "vector"]


class Init:
    """Creates ``nnx.Param`` leaves under one path.

    Attributes:
        index: index of the layer or, inside a site, of the site being built, counted from 0 (may be traced).
        sites: number of sites in the whole model.
        repeats: number of times that a token passes through the part being built.
    """

    def __init__(self, key: jax.Array, path: str = "", index: ArrayLike = 0, sites: int = 1, repeats: float = 1):
        self.key, self.path, self.index, self.sites, self.repeats = key, path, index, sites, repeats

    def __truediv__(self, name: str) -> "Init":
        """The same key one level deeper: ``init / "mixer"``."""
        return Init(self.key, f"{self.path}/{name}", self.index, self.sites, self.repeats)

    def at(self, index: ArrayLike) -> "Init":
        """The same key and path for another ``index``."""
        return Init(self.key, self.path, index, self.sites, self.repeats)

    def repeated(self, times: float) -> "Init":
        """The same key and path for a part through which every token passes several times."""
        return Init(self.key, self.path, self.index, self.sites, self.repeats * times)

    def __call__(
        self,
        name: str,
        initializer: Initializer,
        *shape: int,
        role: Role | None = None,
        axes: tuple[str, ...] = (),
        uses: float = 1.0,
    ) -> nnx.Param:
        """A float32 parameter; its random draw depends on the key and on path and name.

        Args:
            role: see above; ``"vector"`` if omitted, which a parameter of several dimensions may not do.
            axes: names of its dimensions, see above. A device holds dimensions without names whole.
            uses: number of times that the part multiplies one token by it.

        Raises:
            ConfigError: no such role, none where one is needed, or not one name for each dimension.
        """
        role = role or ("vector" if len(shape) < 2 else None)
        if role not in get_args(Role):
            raise ConfigError(
                f"parameter {self.path}/{name} {shape} needs one of the roles {', '.join(get_args(Role))}"
            )
        if axes and len(axes) != len(shape):
            raise ConfigError(f"parameter {self.path}/{name} {shape} needs {len(shape)} names of axes, got {axes}")
        key = jax.random.fold_in(self.key, zlib.crc32(f"{self.path}/{name}".encode()))
        values = initializer(key, shape).astype(jnp.float32)
        return nnx.Param(values, role=role, axes=axes or ("",) * len(shape), uses=uses * self.repeats)


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


def time_steps(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Biases whose softplus is uniform in the logarithm over :data:`STEPS`, as in Mamba."""
    low, high = map(math.log, STEPS)
    dt = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
    return dt + jnp.log(-jnp.expm1(-dt))
