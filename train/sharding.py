"""Which device holds which slice of the training state.

The mesh has three axes. ``data`` repeats the parameters, ``fsdp`` slices them (both slice the batch),
``tensor`` slices the width of the matrix products. One ordered table of rules on canonical parameter
names says which dimension each axis slices; XLA inserts the communication. Streams are never sliced:
every mix of streams stays within a device.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mhc_jax.config import ConfigError
from mhc_jax.functional import param_shapes
from train.config import MeshConfig, RunConfig
from train.table import terminal

P = PartitionSpec
AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = P(("data", "fsdp"))

Rules = tuple[tuple[str, tuple[PartitionSpec, ...]], ...]

# First match wins. A rule names the dimensions from the last one backwards, so that the same rule serves a
# parameter with or without the leading layer axis. Matrices of one pair are sliced column-wise, then row-wise:
# the activations between them stay sliced, and only the second product needs a sum over ``tensor``.
# Alternatives follow in order of preference: GPT-2's vocabulary of 50,257 tokens divides by nothing useful.
RULES: Rules = (
    (r"embed\.tokens", (P("tensor", "fsdp"), P(None, ("tensor", "fsdp")))),  # (V, D)
    (r"embed\.positions", (P(None, "fsdp"),)),  # (P, D)
    (r"head\.kernel", (P("fsdp", "tensor"), P(("tensor", "fsdp"), None))),  # (D, V)
    (r"ends\.proj\.kernel", (P(("tensor", "fsdp"), None),)),  # (D, N*D): the streams stay whole
    # (D, 2D), (D, D), (D, F), (D, R): column-wise
    (r".*\.(in_proj|[qkv]_proj|up_proj|down)\.kernel", (P("fsdp", "tensor"),)),
    (r".*\.(in_proj|[qkv]_proj|up_proj|down)\.bias", (P("tensor"),)),
    (r".*\.(out_proj|down_proj|up)\.kernel", (P("tensor", "fsdp"),)),  # (D, D), (F, D), (R, D): row-wise
    (r".*\.(out_proj|down_proj|up)\.bias", (P(),)),  # (D): slices would have activations moved to them
    (r".*\.(conv|ssm)\.[a-z_]+", (P(("tensor", "fsdp")),)),  # (K, D), (D): channels of the sliced activations
    (r".*\.gamma_(pre|post)", (P(None, "tensor"),)),  # (N, R)
    (r"(.*\.)?(norm|final_norm)\.(scale|bias)", (P("fsdp"),)),  # (D)
    (r".*\.[qk]_norm\.scale", (P(),)),  # (K)
    # What mixes streams is small and read by every device whole.
    (r".*\.(residual|values)\.[a-z_.]+|ends\.[a-z_.]+", (P(),)),
)

# What is stored in slices of the width but used in whole rows. A lookup in slices would leave the streams sliced, and
# XLA would move whole activations between devices to undo that, in both passes.
GATHERED: Rules = (
    (r"embed\.tokens", (P("tensor", None), P())),
    (r"embed\.positions|ends\.proj\.kernel", (P(),)),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of these devices, or else of all devices of all processes.

    Raises:
        ConfigError: the axes do not use exactly the devices there are.
    """
    count = jax.device_count() if devices is None else len(devices)
    data = config.data or count // (config.fsdp * config.tensor)
    if data * config.fsdp * config.tensor != count:
        wanted = f"{config.data or 'data'} x {config.fsdp} x {config.tensor}"
        raise ConfigError(
            f"mesh of {wanted} (data x fsdp x tensor) does not use exactly the {count} available device(s); "
            "choose --mesh.data, --mesh.fsdp and --mesh.tensor whose product is that number"
        )
    shape = data, config.fsdp, config.tensor
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of a (B, ...) batch: sliced over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, BATCH_SPEC)


def host_slice(mesh: Mesh) -> tuple[int, int]:
    """Which of how many equal slices of the global batch this process loads, as ``(host, hosts)``.

    Processes that hold the same rows of the batch (``tensor`` spans them) load the same slice.

    Raises:
        ConfigError: the rows of this process are not one such slice.
    """
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])
    mine = [i for i, row in enumerate(rows) if any(d.process_index == jax.process_index() for d in row)]
    hosts, rest = divmod(len(rows), len(mine))
    host, offset = divmod(mine[0], len(mine))
    if rest or offset or mine != list(range(mine[0], mine[0] + len(mine))):
        raise ConfigError("the mesh does not give each process one slice of the batch; change --mesh.tensor")
    return host, hosts


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays (B, ...) from this process's slice (B / hosts, ...), see :func:`host_slice`."""
    sharding, (_, hosts) = batch_sharding(mesh), host_slice(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array, (len(array) * hosts, *array.shape[1:]))
        for name, array in batch.items()
    }


def dotted(path: tuple[Any, ...]) -> str:
    """``"blocks.mixer.norm.scale"`` for a key path of a pytree."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def param_specs(params: Any, mesh: Mesh) -> dict[str, PartitionSpec]:
    """The spec of every parameter by canonical name.

    Args:
        params: nested dict of arrays or shapes, as from :func:`mhc_jax.functional.param_shapes`.

    Raises:
        ConfigError: a parameter that no rule matches, or a dimension that its axes do not divide.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {dotted(path): _spec(dotted(path), leaf.shape, mesh, RULES) for path, leaf in leaves}


def for_step(params: Any, mesh: Mesh | None) -> tuple[Any, NamedSharding | None]:
    """What a step begins with: the parameters, those of :data:`GATHERED` as it uses them, and how it slices the batch.

    Without ``mesh`` nothing is sliced.
    """
    if mesh is None:
        return params, None

    def gathered(path, leaf):
        name = dotted(path)
        if not _alternatives(name, GATHERED):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, _spec(name, leaf.shape, mesh, GATHERED)))

    return jax.tree_util.tree_map_with_path(gathered, params), batch_sharding(mesh)


def _alternatives(name: str, rules: Rules) -> tuple[PartitionSpec, ...]:
    return next((specs for pattern, specs in rules if re.fullmatch(pattern, name)), ())


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    alternatives = _alternatives(name, rules)
    if not alternatives:
        raise ConfigError(f"no sharding rule matches parameter {name}; add one to RULES in train/sharding.py")
    aligned = [P(*[None] * (len(shape) - len(spec)), *spec) for spec in alternatives]
    faults = [_fault(name, shape, spec, mesh) for spec in aligned]
    if all(faults):
        raise ConfigError(faults[0])
    return aligned[faults.index(None)]


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _slices(entry: str | tuple[str, ...] | None, mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in _axes(entry))


def _fault(name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> str | None:
    """Why ``spec`` cannot slice this parameter, or None."""
    for dim, entry in enumerate(spec):
        if shape[dim] % _slices(entry, mesh):
            axes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in _axes(entry))
            return (
                f"parameter {name} {shape}: dimension {dim} of size {shape[dim]} does not divide by mesh axis {axes}; "
                f"choose a size that is a multiple of {_slices(entry, mesh)}, or a smaller "
                + " or ".join(f"--mesh.{axis}" for axis in _axes(entry))
            )
    return None


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A pytree of NamedSharding like ``state``.

    Args:
        state: a :class:`train.state.TrainState` of arrays or shapes. Parameters follow :data:`RULES`; leaves of
            the optimizer state that are named and shaped like a parameter (its moments) follow that parameter;
            everything else is held whole by every device.

    Raises:
        ConfigError: see :func:`param_specs`.
    """
    specs = param_specs(state.params, mesh)
    shapes = {dotted(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}

    def like_param(path, leaf):
        for start in range(len(path)):
            name = dotted(path[start:])
            if shapes.get(name) == leaf.shape:
                return NamedSharding(mesh, specs[name])
        return NamedSharding(mesh, P())

    whole = jax.tree.map(lambda _: NamedSharding(mesh, P()), state)
    return dataclasses.replace(
        whole,
        params=jax.tree_util.tree_map_with_path(like_param, state.params),
        opt_state=jax.tree_util.tree_map_with_path(like_param, state.opt_state),
    )


def check(config: RunConfig, mesh: Mesh) -> None:
    """Raises ConfigError unless batch and parameters divide by the mesh. Allocates and compiles nothing.

    Args:
        config: with the model's vocabulary and length resolved.
    """
    slices, accumulate = _slices(BATCH_SPEC[0], mesh), config.train.accumulate
    if config.data.batch_size % (slices * accumulate):
        raise ConfigError(
            f"--data.batch-size {config.data.batch_size} is not a multiple of mesh data x fsdp ({slices}) x "
            f"--train.accumulate ({accumulate}); choose a multiple of {slices * accumulate}"
        )
    param_specs(param_shapes(config.model), mesh)


def rules_table(params: Any, mesh: Mesh) -> str:
    """A row for every parameter: name, shape, spec, bytes altogether and on each device; then the totals.

    Args:
        params: nested dict of arrays or shapes.
    """
    specs = param_specs(params, mesh)
    rows: list[dict[str, Any]] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        spec = specs[dotted(path)]
        shard = math.prod(NamedSharding(mesh, spec).shard_shape(leaf.shape))
        name, shape = dotted(path), "x".join(map(str, leaf.shape))
        row = {"parameter": name, "shape": shape, "sharding": _spell(spec)}
        width = leaf.dtype.itemsize
        rows.append({**row, "bytes": math.prod(leaf.shape) * width, "bytes/device": shard * width})
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    totals = {key: sum(row[key] for row in rows) for key in ("bytes", "bytes/device")}
    return terminal([*rows, {"parameter": f"total on {sizes}", **totals}])


def _spell(spec: PartitionSpec) -> str:
    return "(" + ", ".join("*".join(_axes(entry)) or "-" for entry in spec) + ")"
