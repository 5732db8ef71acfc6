"""AdamW and Muon as in PyTorch, their schedule, and their weight decay."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from mhc_jax.config import ConfigError
from mhc_jax.functional import Infos
from mhc_jax.nn.init import Role
from mhc_jax.tree import dotted
from train.config import OptimConfig
from train.update.muon import is_hidden_matrix, muon


def make_optimizer(config: OptimConfig, total_steps: int, infos: Infos) -> optax.GradientTransformation:
    """Clipping, AdamW, or Muon with AdamW for all that is no matrix of a hidden layer, and schedule.

    Equal to ``clip_grad_norm_``, ``torch.optim.AdamW`` and ``torch.optim.Muon`` of PyTorch. The rate of the latest
    update can be read with ``optax.tree.get(opt_state, "learning_rate")``.

    Args:
        infos: descriptions of the parameters, from :func:`mhc_jax.functional.param_info`.

    Raises:
        ConfigError: Muon is asked for, and the model has no matrix that it takes.
    """
    clip = [clip_by_global_norm(config.clip)] if config.clip > 0 else []
    directions = [
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=partial(decay_mask, config, infos)),
    ]
    if config.name == "muon":
        muon_share(infos)
        parts = {"adamw": optax.chain(*directions), "muon": muon(config)}
        directions = [optax.partition(parts, partial(_optimizer_names, infos))]
    return optax.chain(*clip, *directions, _scale_by_rate(schedule(config, total_steps), partial(rate_factors, config)))


def muon_share(infos: Infos) -> tuple[int, int]:
    """Numbers of parameters that Muon takes, and of all.

    Raises:
        ConfigError: it takes none.
    """
    sizes = {name: math.prod(info.shape) for name, info in infos.items()}
    taken = sum(size for name, size in sizes.items() if is_hidden_matrix(infos[name]))
    if not taken:
        raise ConfigError("--optim.name muon: the model has no matrix of a hidden layer; take adamw")
    return taken, sum(sizes.values())


def _optimizer_names(infos: Infos, params: Any) -> Any:
    def name(path, _):
        return "muon" if is_hidden_matrix(infos[dotted(path)]) else "adamw"

    return jax.tree_util.tree_map_with_path(name, params)


class RateState(NamedTuple):
    """Updates made so far, and the learning rate of the latest (of the first, before it)."""

    count: jax.Array
    learning_rate: jax.Array


def _scale_by_rate(rate: optax.Schedule, factors: Callable[[Any], Any]) -> optax.GradientTransformation:
    """:func:`optax.scale_by_learning_rate` that keeps the rate it used, so that it can be reported.

    Args:
        factors: from a tree of updates to the number that multiplies each one's rate.
    """

    def init(params):
        count = jnp.zeros((), jnp.int32)
        return RateState(count, jnp.asarray(rate(count)))

    def update(updates, state, params=None):
        learning_rate = jnp.asarray(rate(state.count))
        updates = jax.tree.map(lambda u, f: (-learning_rate * f * u).astype(u.dtype), updates, factors(updates))
        return updates, RateState(optax.safe_increment(state.count), learning_rate)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scales by ``min(1, limit / (norm + 1e-6))``, as PyTorch does; optax's own divides by the bare norm."""

    def update(updates, state, params=None):
        scale = jnp.minimum(1, limit / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by number of updates made so far, from 0.

    ``lr * (step + 1) / warmup_steps`` while ``step < warmup_steps``, so the last step of the warm-up has
    the full rate (with ``warmup_end="after"`` over ``warmup_steps + 1``, so the next one has; with ``"after_zero"``
    ``step / warmup_steps``, so the first one has none); then the decay of :func:`_decayed`, which ends after
    ``decay_steps`` (if that is 0, ``total_steps``). With ``"wsd"`` it takes the last ``decay_fraction`` of these steps,
    or all that follow the warm-up if those are fewer.
    """
    ramp = max(1, config.warmup_steps) + (config.warmup_end == "after")
    start, end = config.warmup_steps, config.decay_steps or total_steps
    if config.schedule == "wsd":
        start = max(start, end - round(config.decay_fraction * end))
    decay_steps = max(1, end - start)

    def rate(step):
        step = jnp.asarray(step, float)  # float64 where that is switched on; an int32 would divide to float32
        warmup = jnp.where(step < config.warmup_steps, (step + (config.warmup_end != "after_zero")) / ramp, 1)
        progress = jnp.clip((step - start) / decay_steps, 0, 1)
        return config.lr * warmup * _decayed(config, progress)

    return rate


def _decayed(config: OptimConfig, progress: jax.Array) -> jax.Array | float:
    """The share of the peak rate that is left at a share ``progress`` of the decay."""
    if config.schedule == "constant":
        return 1.0
    half_cosine = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    shapes = {"cosine": half_cosine, "linear": 1 - progress, "1-sqrt": 1 - jnp.sqrt(progress)}
    name, _, floored = config.schedule.partition("_")
    left = shapes[config.decay_shape if name == "wsd" else name]
    return jnp.maximum(config.final_lr, left) if floored else config.final_lr + (1 - config.final_lr) * left


# The roles that are decayed.
DECAYED: Mapping[str, Collection[Role]] = {
    "kernels": ("kernel",),
    "matrices": ("kernel", "mixing"),
    "all": get_args(Role),
}


def decay_mask(config: OptimConfig, infos: Infos, params: Any) -> Any:
    """True for every parameter that is decayed, in the structure of ``params``."""
    roles = DECAYED[config.decay]
    return jax.tree_util.tree_map_with_path(lambda path, _: infos[dotted(path)].role in roles, params)


def rate_factors(config: OptimConfig, params: Any) -> Any:
    """The learning-rate factor of every parameter, in the structure of ``params``."""
    own = {"values": config.value_lr, "residual": config.residual_lr}  # by parts of a block

    def factor(path, _):
        # Inside a branch such names are the branch's own.
        parts = set(itertools.takewhile(lambda part: part != "branch", dotted(path).split(".")))
        rates = [rate for part, rate in own.items() if rate and part in parts]
        return rates[0] / config.lr if rates else 1.0

    return jax.tree_util.tree_map_with_path(factor, params)
