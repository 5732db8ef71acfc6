"""Faults seeded in distillation: its losses, its stages, its places."""

from collections.abc import Iterator

import jax.numpy as jnp

from parity_tests.mutations import Mutation, argument, op, options


def mutations() -> Iterator[Mutation]:
    yield op("divergence at temperature 1", "loss.kl_divergence", options(temperature=1.0))
    yield op("divergence at places without a target", "loss.kl_divergence", argument("targets_BT", jnp.zeros_like))
    yield op("distance at places without a target", "loss.state_distance", argument("targets_BT", jnp.zeros_like))
    yield op("teacher and student exchanged", "loss.chunked_distillation", _exchanged, "by 3")
    yield op("the published divergence as a mean over tokens", "loss.published_distillation", _mean)
    weights = "train.objectives.distillation:DistillationConfig.weights"
    yield Mutation("stages that come too early", weights, _early, "trajectory", "distillation, staged")


def _exchanged(healthy):
    def exchanged(teacher_BTE, teacher_head_VE, hidden_BTD, head_VD, **rest):
        return healthy(teacher_BTE, teacher_head_VE, hidden_BTD, head_VD, **rest)

    return exchanged


def _mean(healthy):
    def mean(**arrays):
        total, kl, distance, entropy = healthy(**arrays)
        places = arrays["targets_BT"].shape[1]
        return total - kl + kl / places, kl / places, distance, entropy

    return mean


def _early(healthy):
    return lambda self, progress: healthy(self, progress + 0.01)
