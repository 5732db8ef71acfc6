"""The PyTorch mirror: it gives the same logits."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from mhc_jax import interop
from train.checks.finding import Finding
from train.checks.subject import Subject, relative

# Of float32, over the root mean square of the logits.
ROUNDING = 1e-4


def mirror(subject: Subject) -> list[Finding]:
    """Logits of ``torch_ref`` beside ours."""
    if importlib.util.find_spec("torch") is None:
        return [Finding.unchecked("PyTorch mirror", "torch is not installed")]
    weights = interop.to_torch(subject.model, subject.params)
    try:
        found = mirrored(subject.model.to_dict(), weights, subject.tokens_BT)
    except ValueError as error:
        return [Finding.unchecked("PyTorch mirror", str(error))]
    return [Finding.at_most("PyTorch mirror, logits", relative(found, subject.output.logits_BTV), ROUNDING)]


def mirrored(model: dict[str, Any], weights: Mapping[str, np.ndarray], tokens_BT: np.ndarray) -> np.ndarray:
    """The mirror's logits (B, T, V).

    Raises:
        ValueError: the mirror has no part of a kind that the model has.
    """
    import torch

    import torch_ref

    module = torch_ref.build(model)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    with torch.no_grad():
        return module.eval()(torch.from_numpy(tokens_BT.astype(np.int64))).numpy()
