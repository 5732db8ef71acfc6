"""The contract of a projection of residual logits onto mixing matrices."""

from typing import Any

import torch
from torch import Tensor

from torch_ref.config import implementation, required


class Projection:
    """Logits of ``shape`` to matrices (N, N), built as ``Projection(config, streams)``.

    Attributes:
        shape: shape of the logits of one matrix; an empty shape such as (0,) means that there are none.
    """

    shape: tuple[int, ...]

    def __init__(self, config: Any, streams: int):
        self.streams, self.shape = streams, (streams, streams)

    def near_identity(self, strength: float) -> Tensor:
        """Logits whose projection is near the identity; ``strength`` is how far a diagonal logit leads the others."""
        return strength * torch.eye(self.streams)

    @required
    def __call__(self, logits: Tensor) -> Tensor:
        """Matrices (..., N, N) of logits (..., *shape)."""


def build_projection(config: Any, streams: int) -> Projection:
    """The projection that ``config`` describes.

    Raises:
        ValueError: an unknown kind or impossible settings.
    """
    if streams < 1:
        raise ValueError(f"streams must be at least 1, got {streams}")
    project = implementation("projection", config)(config, streams)
    project(project.near_identity(0.0))  # refuses impossible settings now rather than at the first batch
    return project
