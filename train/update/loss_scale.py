"""Dynamic loss scaling (Micikevicius et al., arXiv 1710.03740, section 3.2), without which float16 loses gradients."""

import dataclasses
import math
from typing import Self

import jax
import jax.numpy as jnp

# Steps without overflow after which the scale doubles; it halves after every overflow. Powers of two round nothing.
PATIENCE = 2000
# Of a loss that is a mean over the targets of a step, as in other frameworks.
FIRST = 2.0**15
LEAST, LARGEST = 2.0**-30, 2.0**30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossScale:
    """What multiplies the differentiated loss, and divides its gradients.

    Attributes:
        scale: float32 scalar, a power of two.
        steps: int32 scalar, steps without overflow since it changed.
    """

    scale: jax.Array
    steps: jax.Array

    @classmethod
    def start(cls, targets: float) -> Self:
        """Of a loss that is summed over so many targets at once."""
        scale = 2.0 ** math.floor(math.log2(FIRST / max(targets, 1.0)))  # float32's log2(2**13) is below 13
        return cls(jnp.asarray(scale, jnp.float32), jnp.zeros((), jnp.int32))

    @property
    def can_fall(self) -> jax.Array:
        """Whether an overflow may be the scale's alone: a smaller one is left to try."""
        return self.scale > LEAST

    def after(self, finite: jax.Array) -> Self:
        """The scale of the step that follows one whose gradients were finite or not."""
        steps = jnp.where(finite, self.steps + 1, 0)
        grown = steps >= PATIENCE
        factor = jnp.where(finite, jnp.where(grown, 2.0, 1.0), 0.5)
        scale = jnp.clip(self.scale * factor, LEAST, LARGEST)
        return dataclasses.replace(self, scale=scale, steps=jnp.where(grown, 0, steps))
