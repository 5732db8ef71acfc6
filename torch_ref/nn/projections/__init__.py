"""Projections of residual logits onto mixing matrices, one kind a file."""

from torch_ref.nn.projections.base import Projection, build_projection
from torch_ref.nn.projections.cayley import Cayley
from torch_ref.nn.projections.circulant import Circulant
from torch_ref.nn.projections.clamped_sinkhorn import ClampedSinkhorn
from torch_ref.nn.projections.clipped_sinkhorn import ClippedSinkhorn
from torch_ref.nn.projections.deepseek_sinkhorn import DeepSeekSinkhorn
from torch_ref.nn.projections.identity import Identity
from torch_ref.nn.projections.kronecker import Kronecker
from torch_ref.nn.projections.newton import Newton
from torch_ref.nn.projections.orthostochastic import Orthostochastic
from torch_ref.nn.projections.permutations import Permutations
from torch_ref.nn.projections.sinkhorn import Sinkhorn
from torch_ref.nn.projections.spectral_sphere import SpectralSphere

__all__ = [
    "Cayley",
    "Circulant",
    "ClampedSinkhorn",
    "ClippedSinkhorn",
    "DeepSeekSinkhorn",
    "Identity",
    "Kronecker",
    "Newton",
    "Orthostochastic",
    "Permutations",
    "Projection",
    "Sinkhorn",
    "SpectralSphere",
    "build_projection",
]
