"""The PyTorch mirror: it gives the same logits."""

import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mhc_jax import interop
from mhc_jax.interop.names import STACK
from train.checks.finding import Finding
from train.checks.subject import Subject, relative

# Of float32, over the root mean square of the logits.
ROUNDING = 1e-4


def mirror(subject: Subject) -> list[Finding]:
    """Logits of ``torch_ref`` beside ours."""
    if importlib.util.find_spec("torch") is None:
        return [Finding.unchecked("PyTorch mirror", "torch is not installed")]
    import torch_ref

    weights = interop.to_torch(subject.model, subject.params)
    try:
        module = torch_ref.build(subject.model.to_dict())
    except ValueError as error:
        return [Finding.unchecked("PyTorch mirror", str(error))]
    if unlike := differences(weights, module.state_dict()):
        return [Finding("PyTorch mirror, parameters", f"{len(unlike)} differ", "ours", False, "; ".join(unlike))]
    found = _logits(module, weights, subject.tokens_BT)
    return [Finding.at_most("PyTorch mirror, logits", relative(found, subject.output.logits_BTV), ROUNDING)]


def differences(ours: Mapping[str, Any], twins: Mapping[str, Any]) -> list[str]:
    """How the mirror's tensors differ from ours in name or shape, a sentence each; layers that do so alike have one.

    Args:
        ours: tensors by the mirror's names.
        twins: its own.
    """
    found = []
    for name in sorted({*ours, *twins}):
        part, _, leaf = re.sub(rf"(^|\.){STACK}\.\d+\.", r"\1", name).rpartition(".")
        twin = f"the twin of {part or 'the model'}"
        if name not in twins:
            found.append(f"{twin} lacks {leaf!r}")
        elif name not in ours:
            found.append(f"{twin} has {leaf!r}, which JAX lacks")
        elif (theirs := tuple(twins[name].shape)) != (shape := tuple(ours[name].shape)):
            found.append(f"{twin} has {leaf!r} of shape {theirs}, JAX of {shape}")
    return list(dict.fromkeys(found))


def _logits(module: Any, weights: Mapping[str, np.ndarray], tokens_BT: np.ndarray) -> np.ndarray:
    """The logits (B, T, V) of a mirror with these weights."""
    import torch

    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    with torch.no_grad():
        return module.eval()(torch.from_numpy(tokens_BT.astype(np.int64))).numpy()
