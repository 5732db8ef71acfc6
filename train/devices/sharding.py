"""The slices of the training state that each device holds.

The mesh has three axes. ``data`` repeats the parameters, ``fsdp`` slices them (both slice the batch),
``tensor`` slices the width of the matrix products. One table says which mesh axes slice a dimension, by the name that
the dimension got when the parameter was made; XLA inserts the communication. Streams are never sliced:
every mix of streams stays within a device.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mhc_jax.config import ConfigError
from mhc_jax.functional import Infos, ParamInfo, Params, param_info
from mhc_jax.nn.model import ModelConfig
from mhc_jax.tree import dotted, unflatten
from train.config import MeshConfig, RunConfig
from train.objectives.kind import TeacherConfig
from train.terminal.table import terminal

P = PartitionSpec
AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = P(("data", "fsdp"))

Slices = Mapping[str, tuple[str, ...]]

# Mesh axes by the name of a dimension, see mhc_jax/nn/init.py; a name that is not here is held whole. Dimensions choose
# in the order of this table, and a mesh axis slices one dimension of a parameter at most. So matrices of one pair are
# sliced column-wise, then row-wise: the activations between them stay sliced, and only the second product needs a sum
# over ``tensor``.
SLICES: Slices = {
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "inner": ("tensor",),
    "rank": ("tensor",),
    "channel": ("tensor", "fsdp"),
    "embed": ("tensor", "fsdp"),
    "width": ("fsdp",),
    "latent": ("fsdp",),
}

# Held whole where it does not divide, its mesh axes left to others: GPT-2's 50,257 tokens divide by nothing useful, and
# three fifths of a width by little.
MAY_BE_WHOLE = {"vocab", "latent"}

# Parameters with such a dimension are stored in slices of the width but used in whole rows. A lookup in slices would
# leave the streams sliced, and XLA would move whole activations between devices to undo that, in both passes.
GATHERED: Slices = {"vocab": ("tensor",), "position": (), "streams": ()}


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
    """The sharding of a (B, ...) batch: sliced over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, BATCH_SPEC)


def host_slice(mesh: Mesh) -> tuple[int, int]:
    """The slice of the global batch that this process loads, as ``(index, number of slices)``.

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


def param_specs(infos: Infos, mesh: Mesh) -> dict[str, PartitionSpec]:
    """The spec of every parameter by canonical name.

    Args:
        infos: what the parameters are, as from :func:`mhc_jax.functional.param_info`.

    Raises:
        ConfigError: a dimension that its mesh axes do not divide.
    """
    return {name: _spec(name, info, mesh, SLICES) for name, info in infos.items()}


def for_step(model: ModelConfig, params: Params, mesh: Mesh | None) -> tuple[Params, NamedSharding | None]:
    """The inputs of a step: the parameters, those of :data:`GATHERED` as it uses them, and the sharding of the batch.

    Without ``mesh`` nothing is sliced.
    """
    if mesh is None:
        return params, None
    infos = param_info(model)

    def gathered(path, leaf):
        name = dotted(path)
        stored, used = (_spec(name, infos[name], mesh, slices) for slices in (SLICES, GATHERED))
        if stored == used or not GATHERED.keys() & set(infos[name].axes):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, used))

    return jax.tree_util.tree_map_with_path(gathered, params), batch_sharding(mesh)


def _spec(name: str, info: ParamInfo, mesh: Mesh, slices: Slices) -> PartitionSpec:
    """The choices of the dimensions, in the order of their names in ``slices``.

    Raises:
        ConfigError: a dimension is not divisible by its choice.
    """
    chosen: list[tuple[str, ...]] = [()] * len(info.axes)
    for axis, wanted in slices.items():
        for dim in (dim for dim, its in enumerate(info.axes) if its == axis):
            taken = {mesh_axis for entry in chosen for mesh_axis in entry}
            entry = tuple(mesh_axis for mesh_axis in wanted if mesh_axis not in taken)
            if axis not in MAY_BE_WHOLE or info.shape[dim] % _slices(entry, mesh) == 0:
                chosen[dim] = entry
    for dim, entry in enumerate(chosen):
        _check_divides(name, info.shape, dim, entry, mesh)
    return P(*(entry if len(entry) > 1 else entry[0] if entry else None for entry in chosen))


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _slices(entry: str | tuple[str, ...] | None, mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in _axes(entry))


def _check_divides(name: str, shape: tuple[int, ...], dim: int, entry: tuple[str, ...], mesh: Mesh) -> None:
    """Raises ConfigError unless these mesh axes can slice that dimension."""
    slices = _slices(entry, mesh)
    if shape[dim] % slices:
        axes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in entry)
        raise ConfigError(
            f"parameter {name} {shape}: dimension {dim} of size {shape[dim]} does not divide by mesh axis {axes}; "
            f"choose a size that is a multiple of {slices}, or a smaller "
            + " or ".join(f"--mesh.{axis}" for axis in entry)
        )


def state_shardings(state: Any, infos: Infos, mesh: Mesh) -> Any:
    """A pytree of NamedSharding like ``state``.

    Args:
        state: a :class:`train.update.state.TrainState` of arrays or shapes. Parameters and their
            average follow :data:`SLICES`; leaves of the optimizer state that are named and shaped like a parameter (its
            moments) follow that parameter; everything else is held whole by every device.
        infos: as in :func:`param_specs`.

    Raises:
        ConfigError: see :func:`param_specs`.
    """
    specs = param_specs(infos, mesh)

    def like_param(path, leaf):
        for start in range(len(path)):
            name = dotted(path[start:])
            if name in infos and infos[name].shape == leaf.shape:
                return NamedSharding(mesh, specs[name])
        return NamedSharding(mesh, P())

    whole = jax.tree.map(lambda _: NamedSharding(mesh, P()), state)
    return dataclasses.replace(
        whole,
        params=jax.tree_util.tree_map_with_path(like_param, state.params),
        objective=jax.tree_util.tree_map_with_path(like_param, {"objective": state.objective})["objective"],
        opt_state=jax.tree_util.tree_map_with_path(like_param, state.opt_state),
        ema=jax.tree_util.tree_map_with_path(like_param, state.ema),
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
    param_specs(param_info(config.model), mesh)
    if config.objective.teacher is not None:
        teacher_shardings(config.objective.teacher, mesh)


def teacher_shardings(teacher: TeacherConfig, mesh: Mesh) -> Params:
    """Shardings of a teacher's parameters: sliced as a model's are, because it may be larger than a device.

    Raises:
        ConfigError: see :func:`param_specs`.
    """
    try:
        specs = param_specs(param_info(teacher.known), mesh)
    except ConfigError as error:
        raise ConfigError(f"the teacher {teacher.path}: {error}") from None
    return unflatten({name: NamedSharding(mesh, spec) for name, spec in specs.items()})


def table(infos: Infos, mesh: Mesh) -> str:
    """A row for every parameter: name, role, axes, shape, spec, bytes altogether and on each device; then the totals.

    Args:
        infos: as in :func:`param_specs`.
    """
    rows: list[dict[str, Any]] = []
    for name, spec in param_specs(infos, mesh).items():
        info = infos[name]
        shard = math.prod(NamedSharding(mesh, spec).shard_shape(info.shape))
        row = {"parameter": name, "role": info.role, "axes": " ".join(axis or "-" for axis in info.axes)}
        row |= {"shape": "x".join(map(str, info.shape)), "sharding": _spell(spec)}
        width = info.dtype.itemsize
        rows.append({**row, "bytes": math.prod(info.shape) * width, "bytes/device": shard * width})
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    totals = {key: sum(row[key] for row in rows) for key in ("bytes", "bytes/device")}
    return terminal([*rows, {"parameter": f"total on {sizes}", **totals}])


def _spell(spec: PartitionSpec) -> str:
    return "(" + ", ".join("*".join(_axes(entry)) or "-" for entry in spec) + ")"
