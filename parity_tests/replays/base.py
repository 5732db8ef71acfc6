"""A golden number beside ours."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from parity_tests import tolerances
from parity_tests.compare import Row, error, ulp

FOLDER = Path(__file__).parents[1] / "golden"


def summary(system: str) -> dict[str, Any]:
    """The golden numbers in JSON of one system."""
    return json.loads((FOLDER / f"{system}.json").read_text(encoding="utf-8"))


def arrays(system: str, case: str) -> dict[str, np.ndarray]:
    """The golden arrays of one case: ``logits``, and gradients under ``grad/``."""
    with np.load(FOLDER / f"{system}.npz") as stored:
        prefix = f"{case}/"
        return {name.removeprefix(prefix): stored[name] for name in stored.files if name.startswith(prefix)}


def gradients(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The golden gradients by the original's names."""
    return {name.removeprefix("grad/"): x for name, x in golden.items() if name.startswith("grad/")}


def compiled(function):
    """``jax.jit`` for models that compile, on CPU, far longer than they run."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


def row(case: str, tap: str, found: Any, golden: Any, least: float = tolerances.GOLDEN_SMALLEST) -> Row:
    """Ours beside the original's own float32 numbers."""
    found, golden = np.asarray(found), np.asarray(golden, np.float64)
    result = Row("golden", case, tap, golden.shape)
    if found.shape != golden.shape:
        return dataclasses.replace(result, fault=f"JAX's shape is {found.shape}")
    distance = np.abs(found - golden).max()
    allowed = tolerances.GOLDEN * max(np.abs(golden).max(), least)
    fault = "" if distance <= allowed else f"differs by {distance:.1e} > {allowed:.1e}"
    return dataclasses.replace(result, err_jax=error(found, golden), ulp=ulp(found, golden), fault=fault)
