"""Lowering of the training step, for all commands: from shapes and shardings, so that nothing is allocated."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mhc_jax.functional import Params, param_shapes
from train.config import RunConfig
from train.devices import sharding
from train.update.state import TrainState, trained_info
from train.update.step import init_state, make_train_step


def abstract_state(config: RunConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the training state.

    Raises:
        ConfigError: a parameter that the mesh cannot slice.
    """
    shapes = jax.eval_shape(functools.partial(init_state, config, optimizer))
    return jax.tree.map(
        lambda leaf, its: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=its),
        shapes,
        sharding.state_shardings(shapes, trained_info(config), mesh),
    )


def abstract_teacher(config: RunConfig, mesh: Mesh) -> Params | None:
    """Shapes, dtypes and shardings of the parameters of the objective's teacher; None if it has none."""
    teacher = config.objective.teacher
    if teacher is None:
        return None
    return jax.tree.map(
        lambda leaf, its: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=its),
        param_shapes(teacher.known),
        sharding.teacher_shardings(teacher, mesh),
    )


def shardings(state: Any) -> Any:
    """Shardings of the leaves of a tree of arrays or abstract arrays."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def whole(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which every device has a copy."""
    return NamedSharding(mesh, PartitionSpec())


def lower_train_step(
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    total_steps: int | None = None,
) -> jax.stages.Lowered:
    """The training step for states like ``state``, which it donates, batches of the configured shape, and the teacher.

    Args:
        state: abstract or not, sharded over ``mesh``.
        total_steps: see :func:`train.update.step.make_train_step`.
    """
    slices = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=slices) for name, shape in config.data.arrays().items()
    }
    step = jax.jit(
        make_train_step(config, optimizer, mesh, total_steps),
        donate_argnums=0,
        out_shardings=(shardings(state), whole(mesh)),
    )
    return step.lower(state, batch, abstract_teacher(config, mesh))
