"""Kernels on several devices: XLA cannot slice a kernel itself."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, Sharding


def by_device(run: Callable[..., Any], batch_sharding: Sharding | None, in_specs: Any, out_specs: Any) -> Any:
    """``run`` on those slices of its arguments that each device of the mesh has; ``run`` itself on one device."""
    if not isinstance(batch_sharding, NamedSharding):
        return run
    return jax.shard_map(run, mesh=batch_sharding.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def axes(batch_sharding: Sharding | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """The axes of the mesh that slice the batch, and the others with their sizes; none on one device."""
    if not isinstance(batch_sharding, NamedSharding):
        return (), {}
    rows = batch_sharding.spec[0] if len(batch_sharding.spec) else None
    rows = () if rows is None else rows if isinstance(rows, tuple) else (rows,)
    return rows, {axis: size for axis, size in batch_sharding.mesh.shape.items() if axis not in rows}
