"""The spectral sphere."""

import torch

from torch_ref.config import register
from torch_ref.nn.projections.base import Projection
from torch_ref.ops import projections


@register("projection", "spectral_sphere")
class SpectralSphere(Projection):
    """Logits: the rotations' entries u and v, then the singular values s."""

    def __init__(self, config, streams: int):
        super().__init__(config, streams)
        entries = (streams - 1) * (streams - 2) // 2
        self.sizes = (entries, entries, streams - 1)
        self.shape = (sum(self.sizes),)

    def near_identity(self, strength):
        entries, _, values = self.sizes
        return torch.cat([torch.zeros(2 * entries), torch.full((values,), strength)])

    def __call__(self, logits):
        return projections.spectral_sphere(*logits.split(self.sizes, -1), streams=self.streams)
