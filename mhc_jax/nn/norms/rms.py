"""Root-mean-square normalisation."""

import dataclasses

from mhc_jax.nn.init import Init, ones
from mhc_jax.nn.norms.base import Norm, NormConfig
from mhc_jax.ops.norm import RMS_EPS, rms_norm
from mhc_jax.registry import register


@register("norm", "rms")
@dataclasses.dataclass(frozen=True)
class RMSNormConfig(NormConfig):
    """RMSNorm with a gain.

    Attributes:
        eps: added to the mean square.
    """

    eps: float = RMS_EPS

    def validate(self):
        super().validate()
        self.require_not_negative("eps")

    def build(self, width, init, channels="width"):
        return RMSNorm(self, width, init, channels)


class RMSNorm(Norm):
    """See :class:`RMSNormConfig`."""

    fusible = True

    def __init__(self, config: RMSNormConfig, width: int, init: Init, channels: str):
        self.config = config
        self.scale = init("scale", ones, width, axes=(channels,))

    def __call__(self, x):
        return rms_norm(x, self.scale[...].astype(x.dtype), eps=self.config.eps)
