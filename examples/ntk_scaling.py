"""A scaling of rotary positions from outside the repository: a larger base, known as NTK-aware scaling.

``python -m train rlm_small --import ntk_scaling --model.mixer.rotary-scaling ntk``
"""

import dataclasses

import jax.numpy as jnp

from mhc_jax.nn.rotary import RotaryScalingConfig
from mhc_jax.registry import register


@register("rotary_scaling", "ntk")
@dataclasses.dataclass(frozen=True)
class NTKScalingConfig(RotaryScalingConfig):
    """The slowest pair turns ``factor`` times more slowly, the fastest as before, those between in proportion.

    Attributes:
        factor: by which the text may be longer.
    """

    factor: float = 2.0

    def validate(self):
        super().validate()
        self.require(self.factor >= 1, f"factor must be at least 1, got {self.factor}")

    def scale(self, frequency_P, base):
        pairs = len(frequency_P)
        return frequency_P * self.factor ** (-jnp.arange(pairs, dtype=frequency_P.dtype) / max(pairs - 1, 1))
