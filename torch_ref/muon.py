"""Muon (Jordan et al., https://kellerjordan.github.io/posts/muon), in the dtype of its parameters.

PyTorch's own computes in bfloat16, whatever the parameters are.
"""

from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = 3.4445, -4.7750, 2.0315
_STEPS, _EPS = 5, 1e-8


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the weights of linear layers in blocks, without those by which streams are read, mixed and written."""
    weights = (f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name for name in weights if "blocks." in name and not {"residual", "routing"}.intersection(name.split("."))}


def orthogonalized(matrix: Tensor) -> Tensor:
    """Five Newton-Schulz steps from ``matrix`` over its Frobenius norm: near the closest orthogonal matrix."""
    a, b, c = _COEFFICIENTS
    x = matrix / (torch.linalg.matrix_norm(matrix) + _EPS)
    for _ in range(_STEPS):
        # On the smaller side of the matrix.
        gram = x.T @ x if len(x) > x.shape[1] else x @ x.T
        polynomial = b * gram + c * gram @ gram
        x = a * x + (x @ polynomial if len(x) > x.shape[1] else polynomial @ x)
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; the decay is decoupled.

    Args:
        params: weights (outputs, inputs).
        scale: ``"original"`` multiplies by ``sqrt(max(1, outputs / inputs))``, ``"match_rms_adamw"`` by
            ``0.2 sqrt(max(outputs, inputs))``.
    """

    def __init__(self, params: Any, *, lr: float, momentum: float, weight_decay: float, scale: str):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "scale": scale})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for weight in group["params"]:
                velocity = self.state[weight].setdefault("velocity", torch.zeros_like(weight))
                velocity.mul_(group["momentum"]).add_(weight.grad)
                direction = orthogonalized(weight.grad + group["momentum"] * velocity)
                outputs, inputs = weight.shape
                original = group["scale"] == "original"
                factor = max(1, outputs / inputs) ** 0.5 if original else 0.2 * max(outputs, inputs) ** 0.5
                weight.sub_(group["lr"] * (factor * direction + group["weight_decay"] * weight))


class Together:
    """Optimizers that step together."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers
        self.param_groups = [group for each in optimizers for group in each.param_groups]

    def zero_grad(self) -> None:
        for each in self.optimizers:
            each.zero_grad()

    def step(self) -> None:
        for each in self.optimizers:
            each.step()
