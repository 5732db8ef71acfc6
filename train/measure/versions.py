"""Versions of the software of a run."""

import importlib.metadata
import platform

PACKAGES = ("mhc-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions(*others: str) -> dict[str, str]:
    """Versions of Python and of the installed packages, these and ``others``, by name."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *others):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # the project itself, run from a checkout
            continue
    return found
