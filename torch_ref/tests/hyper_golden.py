"""The golden numbers of the published hyper-connections: their inputs, parameters and translation to ours.

Every tensor is a sine of its flat index, on top of its initial value. A case names our configuration, and for each of
our parameters the published one and how its layout changes.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = Path(__file__).parents[2] / "parity_tests" / "golden" / "hyper_connections.json"
GOLDEN = json.loads(FILE.read_text())
EXPRESSED = {name: case for name, case in GOLDEN["cases"].items() if "config" in case}


def fill(shape: tuple[int, ...] | list[int], k: int, a: float = 1.0) -> Tensor:
    """``a sin(0.9 i + 0.1 k + 0.3)`` of the flat index i."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (a * torch.sin(0.9 * i + 0.1 * k + 0.3)).reshape(shape)


def published_parameter(spec: dict[str, Any]) -> Tensor:
    """The value of a parameter of the published module."""
    filled = fill(spec["shape"], spec["k"], spec["a"])
    return torch.tensor(spec["init"], dtype=torch.float64) + (filled.abs() if spec.get("abs") else filled)


def our_parameters(case: dict[str, Any], shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Our parameters, by name, that equal the published ones."""

    def translate(name: str, published: str, layout: str) -> Tensor:
        value = published_parameter(case["parameters"][published])
        if layout == "transpose":
            return value.mT
        if layout == "swap_res":  # rows 2n.. are a flat n x n matrix, stored with source and destination exchanged
            n = case["streams"]
            res = value[2 * n :].unflatten(0, (n, n)).transpose(0, 1).flatten(0, 1)
            return torch.cat([value[: 2 * n], res])
        return value.reshape(shapes[name])

    return {name: translate(name, *source) for name, source in case["ours"].items()}


def to_streams(packed: Tensor, streams: int) -> Tensor:
    """(B, T, N, D) of rows packed as ``b * N + s``."""
    return packed.unflatten(0, (-1, streams)).movedim(1, 2)


def to_packed(h_BTND: Tensor) -> Tensor:
    return h_BTND.movedim(2, 1).flatten(0, 1)


def digest(x: Tensor) -> list[float]:
    """Sum, sum of magnitudes, and three entries: the golden description of an array."""
    flat = x.detach().flatten()
    return [float(value) for value in (flat.sum(), flat.abs().sum(), flat[0], flat[7], flat[-1])]
