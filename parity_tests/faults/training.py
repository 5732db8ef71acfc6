"""Faults seeded in the optimizer and its schedule."""

from collections.abc import Callable, Iterator

import jax.numpy as jnp
import optax

from parity_tests.mutations import Mutation, Replace
from train.config import OptimConfig


def mutations() -> Iterator[Mutation]:
    def adamw(fault, replace, target="make_optimizer", case="original"):
        return Mutation(fault, f"train.update.optimizer:{target}", replace, "optimizer", case)

    yield adamw("AdamW with epsilon 1e-7", _config(lambda c: c.replace(eps=1e-7)))
    yield adamw("AdamW with its betas swapped", _config(lambda c: c.replace(beta1=c.beta2, beta2=c.beta1)))
    yield adamw("weight decay in the gradient", _decayed_gradient)
    yield adamw("weight decay on matrices only", _config(lambda c: c.replace(decay="matrices")))
    yield adamw("clipping without 1e-6", lambda _: optax.clip_by_global_norm, "clip_by_global_norm")
    yield adamw("warm-up one step late", _late_schedule, "schedule", "default")


def _config(change: Callable[[OptimConfig], OptimConfig]) -> Replace:
    """The same factory, given another configuration."""
    return lambda healthy: lambda config, *rest: healthy(change(config), *rest)


def _late_schedule(healthy):
    return lambda config, total: lambda step: healthy(config, total)(jnp.maximum(step - 1, 0))


def _decayed_gradient(healthy):
    def adamw(config, *rest):
        coupled = optax.add_decayed_weights(config.weight_decay)
        return optax.chain(coupled, healthy(config.replace(weight_decay=0.0), *rest))

    return adamw
