"""The contract of a norm: how a vector of activations is brought to scale."""

from typing import Any

from torch import Tensor, nn

from torch_ref.config import implementation, required


class Norm(nn.Module):
    """Maps (..., D) to (..., D), each vector alone; built as ``Norm(config, width, biased)``.

    Args:
        biased: has a bias if its kind can have one, whatever the configuration says.
    """

    def __init__(self, config: Any, width: int, biased: bool = False):
        super().__init__()

    @required
    def forward(self, x: Tensor) -> Tensor: ...


def build_norm(config: Any, width: int, biased: bool = False) -> Norm:
    """The norm that ``config`` describes.

    Raises:
        ValueError: an unknown kind or a negative epsilon.
    """
    return implementation("norm", config)(config, width, biased)


def checked_eps(config: Any) -> float:
    """The epsilon of a norm; ValueError if it is negative."""
    if config.eps < 0:
        raise ValueError(f"{config.kind}: eps must not be negative, got {config.eps}")
    return config.eps
