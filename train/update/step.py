"""One training step and one evaluation step: pure functions that the caller compiles."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from train.config import RunConfig
from train.devices import sharding
from train.update.loss_scale import LossScale
from train.update.state import TrainState, joined, parted

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# What the lines of the log hold beside the objective's means and the penalties: numbers of a step, of the loop, scores.
RESERVED = {
    *("grad_norm", "param_norm", "update_norm", "lr", "skipped", "consecutive_skipped", "loss_scale"),
    *("step", "total_tokens", "tokens_per_second", "data_wait", "flops_per_second", "mfu", "streams"),
}
SCORES = ("val_", "final_val_")


def init_state(config: RunConfig, optimizer: optax.GradientTransformation, targets_share: float = 1.0) -> TrainState:
    """The state before the first step; compile it with ``out_shardings`` to create it sharded.

    Args:
        targets_share: see :meth:`train.data.kind.Data.targets_share`.
    """
    key = jax.random.key(config.train.seed)
    params = mhc_jax.init(config.model, key)
    own = config.objective.init(config.model, key)
    # Three arrays rather than one shared: a step donates each of them.
    step, skipped, consecutive = (jnp.zeros((), jnp.int32) for _ in range(3))
    scale = None
    if config.model.execution.policy == "float16":
        places = config.data.batch_size * config.data.seq_len / config.train.accumulate
        scale = LossScale.start(places * targets_share)
    opt_state = optimizer.init(joined(params, own))
    ema = jax.tree.map(jnp.copy, params) if config.optim.ema else None
    return TrainState(step, params, opt_state, skipped, consecutive, scale, own, ema)


def make_train_step(
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    total_steps: int | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A function of (state, batch) that returns the next state and metrics; the parameters of the objective's teacher,
    if it has one, come third.

    Without ``mesh`` the step is for one device; without ``total_steps`` parts that are annealed act as they do in the
    end. ``batch`` is one of ``config.data.arrays()``; its rows are a multiple
    of ``train.accumulate``. Micro-batches are weighted by their number of targets, so the step equals the one on the
    whole batch, but for auxiliary losses, which are not additive over sequences: theirs is the weighted mean over
    micro-batches.

    A step whose loss or gradient is not finite changes nothing but the counters and, under the policy float16, the loss
    scale. A step whose update is not finite counts as skipped too; the parameters that it would make overflow stay as
    they are. So the parameters and the optimizer state are finite at all times.

    Metrics: ``loss`` (the objective's mean per token, without auxiliary losses) and its further means, ``lr``,
    ``grad_norm`` (before clipping), ``param_norm`` (after the update), ``update_norm``, ``tokens`` (targets in this
    step), ``skipped`` (steps skipped so far), ``consecutive_skipped``, every auxiliary loss by its name, weighted,
    and under the policy float16 ``loss_scale``. An overflow that a smaller loss scale may mend counts as skipped alone.

    Tracing the function raises ConfigError if an auxiliary loss, or a sum of the objective, has the name of another
    metric, or of one in :data:`RESERVED`.
    """

    def objective(trained: Params, teacher: Params | None, batch: Batch, key, progress, scale: jax.Array | float):
        params, own = parted(trained)
        params, batch_sharding = sharding.for_step(config.model, params, mesh)
        called = {"key": key, "progress": progress, "batch_sharding": batch_sharding}
        sums, penalties = config.objective.training_sums(config.model, params, own, teacher, batch, **called)
        _check_names(sums, penalties)
        weighted = {name: sums["tokens"] * value for name, value in penalties.items()}
        return scale * (sums["loss"] + sum(weighted.values())), {**sums, **weighted}

    def gradients(trained: Params, teacher: Params | None, batch: Batch, key, progress, scale: jax.Array | float):
        """Gradients of the mean, and the means."""

        def part(index, micro_batch):
            (_, sums), grads = jax.value_and_grad(objective, has_aux=True)(
                trained, teacher, micro_batch, jax.random.fold_in(key, index), progress, scale
            )
            return grads, sums

        grads, sums = _sum_over_parts(part, batch, config.train.accumulate)
        tokens = sums.pop("tokens")
        means = jax.tree.map(lambda x: (x / tokens).astype(x.dtype), sums)
        grads = jax.tree.map(lambda x: (x / (tokens * scale)).astype(x.dtype), grads)
        return grads, {**means, "tokens": tokens}

    def train_step(state: TrainState, batch: Batch, teacher: Params | None = None) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        progress = None if total_steps is None else state.step / total_steps
        scale = 1 if state.loss_scale is None else state.loss_scale.scale
        if config.objective.teacher is not None:
            teacher, _ = sharding.for_step(config.objective.teacher.known, teacher, mesh)
        grads, metrics = gradients(state.trained, teacher, batch, key, progress, scale)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trained)
        lr = optax.tree.get(opt_state, "learning_rate")
        # A choice that waited for the norms of the update would need a second pass over parameters and moments. The
        # gradient's norm keeps the moments finite; parameters are kept from overflowing one by one.
        grad_norm = optax.tree.norm(grads)
        sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        opt_state = _where(sound, opt_state, state.opt_state)
        trained = jax.tree.map(
            lambda new, old: jnp.where(sound & jnp.isfinite(jnp.square(new)), new, old),
            optax.apply_updates(state.trained, updates),
            state.trained,
        )
        norms = {
            "grad_norm": grad_norm,
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(trained),
        }
        finite = sound & jnp.isfinite(norms["update_norm"]) & jnp.isfinite(norms["param_norm"])
        skipped = state.skipped + ~finite
        loss_scale, fault = None, ~finite
        if state.loss_scale is not None:
            loss_scale, metrics["loss_scale"] = state.loss_scale.after(finite), scale
            fault &= ~(jnp.isfinite(metrics["loss"]) & state.loss_scale.can_fall)
        consecutive = jnp.where(finite, 0, state.consecutive_skipped + fault)
        metrics |= {**norms, "lr": lr, "skipped": skipped, "consecutive_skipped": consecutive}
        params, own = parted(trained)
        ema = state.ema
        if ema is not None:
            # Begins with the parameters after the first update, as PyTorch's does.
            decay = jnp.where(state.step == state.skipped, 0.0, config.optim.ema)
            moved = optax.incremental_update(params, ema, 1 - decay)
            ema = _where(finite, moved, ema)
        return TrainState(state.step + 1, params, opt_state, skipped, consecutive, loss_scale, own, ema), metrics

    return train_step


def make_eval_step(config: RunConfig, mesh: Mesh | None = None) -> Callable[[Params, Batch], Metrics]:
    """A function of (params, batch) that returns the objective's sums, without dropout."""

    def eval_step(params: Params, batch: Batch) -> Metrics:
        params, batch_sharding = sharding.for_step(config.model, params, mesh)
        return config.objective.sums(config.model, params, batch, batch_sharding=batch_sharding)[0]

    return eval_step


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old).astype(old.dtype), new, old)


def _check_names(sums: Collection[str], penalties: Collection[str]) -> None:
    """Raises ConfigError for a sum or penalty that would stand under the name of another metric."""
    for what, names, taken in (("sum of the objective", sums, RESERVED), ("penalty", penalties, RESERVED.union(sums))):
        for name in names:
            if name in taken or name.startswith(SCORES):
                raise ConfigError(f"the {what} {name!r} has the name of another metric; rename it")


def _sum_over_parts(function: Callable[[Any, Batch], Any], batch: Batch, parts: int) -> Any:
    """``sum_i function(i, part i of batch)``, one part at a time."""
    if parts == 1:
        return function(0, batch)
    # Part i holds rows i, i + parts, ...: a batch axis sharded in contiguous runs is then cut without moving a row.
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)
    shapes = jax.eval_shape(function, 0, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def body(total, part):
        return jax.tree.map(jnp.add, total, function(*part)), None

    return jax.lax.scan(body, zeros, (jnp.arange(parts), split))[0]
