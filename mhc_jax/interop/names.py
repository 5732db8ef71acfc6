"""Canonical parameter names, and how each maps to the PyTorch mirror's name and memory layout.

In JAX the parameters of all layers are stacked under ``blocks.<path>``, layer axis first, wherever ``blocks`` stands in
the name; in PyTorch layer l owns ``blocks.<l>.<path>``. The translation of a leaf depends only on its name, see
:data:`_RULES`.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from mhc_jax.functional import param_shapes
from mhc_jax.nn.model import ModelConfig
from mhc_jax.tree import flatten

STACK = "blocks"

Layout = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Rule:
    """PyTorch's name of a leaf, and the change of layout in both directions."""

    name: str
    to_torch: Layout
    to_jax: Layout


def _same(x: np.ndarray) -> np.ndarray:
    return x


_RULES = {
    "kernel": _Rule("weight", lambda x: x.T, lambda x: x.T),
    "filter": _Rule("weight", lambda x: x.T[:, None, :], lambda x: x[:, 0, :].T),
    "scale": _Rule("weight", _same, _same),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One PyTorch tensor and where it lives in JAX: a path, and a layer if the path is stacked."""

    torch_name: str
    path: str
    layer: int | None
    shape: tuple[int, ...]
    to_torch: Layout
    to_jax: Layout


def is_stacked(name: str) -> bool:
    """Whether a parameter or an activation of that dotted name has a leading layer axis."""
    return STACK in name.split(".")[:-1]


def of_layer(name: str, layer: int) -> str:
    """The name of one layer's slice of the array stacked under ``name``."""
    before, after = f".{name}".split(f".{STACK}.", 1)
    return f"{before}.{STACK}.{layer}.{after}".removeprefix(".")


def jax_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical path to shape, for every parameter of the model."""
    return {path: leaf.shape for path, leaf in flatten(param_shapes(config)).items()}


def torch_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The mirror's name to shape, for every tensor of its state_dict."""
    abstract = ((entry, np.broadcast_to(np.float32(0), entry.shape)) for entry in entries(config))
    return {entry.torch_name: entry.to_torch(leaf).shape for entry, leaf in abstract}


def entries(config: ModelConfig) -> Iterator[Entry]:
    """The PyTorch tensors that stand for the parameters of the model."""
    for path, shape in jax_shapes(config).items():
        parent, _, leaf = path.rpartition(".")
        rule = _RULES.get(leaf, _Rule(leaf, _same, _same))
        torch_path = f"{parent}.{rule.name}".removeprefix(".")
        if not is_stacked(path):
            yield Entry(torch_path, path, None, tuple(shape), rule.to_torch, rule.to_jax)
            continue
        for layer in range(shape[0]):
            yield Entry(of_layer(torch_path, layer), path, layer, tuple(shape[1:]), rule.to_torch, rule.to_jax)
