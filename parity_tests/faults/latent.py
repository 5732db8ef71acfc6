"""Faults seeded in multi-head latent attention: its two forms, its latents, its shared key, its cache."""

from collections.abc import Iterator

import jax.numpy as jnp

from parity_tests.mutations import Mutation, argument, op, options

DEEPSEEK, LEARNED = "latent attention", "latent attention over mhc, value residual, learned positions"
MIXER = "mhc_jax.nn.mixers.latent_attention:"


def mutations() -> Iterator[Mutation]:
    formed, absorbed = "attention.latent_attention", "attention.absorbed_latent_attention"
    yield op("only the first head sees the shared key", formed, argument("q_rope_BTHP", _first_head))
    yield op("heads' keys made of each other's matrices", formed, argument("k_up_RHK", lambda up: up[:, ::-1]))
    yield op("absorbed scores scaled by the latents' width", absorbed, options(scale=5**-0.5))
    yield op("absorbed scores without the shared key", absorbed, argument("k_rope_BSP", jnp.zeros_like))
    yield op("absorbed form sees padding", absorbed, options(start_B=None), "after padding and a cache")
    yield Mutation("latents not normalised", f"{MIXER}LatentAttention._normalised", _unchanged, "models", DEEPSEEK)
    yield Mutation("scores without YaRN's growth", f"{MIXER}latent_attention", options(scale=None), "models", DEEPSEEK)
    yield Mutation("shared key not turned", f"{MIXER}turned", _queries_only, "models", DEEPSEEK)
    yield Mutation(
        "latents cached before the value residual", f"{MIXER}LatentAttention._latents", _early, "decode", LEARNED
    )
    stale = f"{MIXER}LatentAttention.__call__"
    yield Mutation("turned keys are not cached", stale, _forgets_keys, "decode", DEEPSEEK)


def _first_head(q_rope_BTHP):
    return q_rope_BTHP.at[:, :, 1:].set(0)


def _unchanged(healthy):
    return lambda self, norm, x: x


def _queries_only(healthy):
    """The shared key alone has one head."""
    return lambda config, x, *rest: x if x.shape[2] == 1 else healthy(config, x, *rest)


def _early(healthy):
    """A call that continues a text uses its own values alone."""

    def latents(self, u_BTD, scope):
        return healthy(self, u_BTD, scope if isinstance(scope.column, int) else scope.replace(values=lambda v: v))

    return latents


def _forgets_keys(healthy):
    def call(self, u_BTD, state, scope):
        y_BTD, after = healthy(self, u_BTD, state, scope)
        return y_BTD, after and {**after, "k_rope": state["k_rope"]}

    return call
