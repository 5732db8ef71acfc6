"""The kinds of this repository, which tables of documented values must hold; a plug-in documents its own."""

from mhc_jax import registry

PACKAGES = {"configs", "mhc_jax", "train"}


def own(axis):
    """Names registered on an axis by the repository itself."""
    return [name for name in registry.names(axis) if registry.get(axis, name).__module__.split(".")[0] in PACKAGES]
