"""Decoding by prefill and single steps, against the whole sequence at once in float64."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch

import mhc_jax
from mhc_jax import decode
from parity_tests.compare import Case, DType, Values
from parity_tests.frameworks import Arrays, jax_precision, jit, jitter
from parity_tests.systems import SYSTEMS, System, Weights, batch
from parity_tests.taps import in_dtype, to_module, to_params

PROMPT = 3


def cases() -> Iterator[Case]:
    for system in (system for system in SYSTEMS.values() if system.decoded):
        yield decoding("decode", system.name, system.config, Weights(system.config), batch(system.config)["tokens"])


def decoding(tier: str, name: str, config, weights: Arrays, tokens: np.ndarray) -> Case:
    """Logits after a prompt and then token by token, and of the whole sequence."""
    arguments = config, weights, tokens
    return Case(
        tier=tier,
        name=name,
        jax=functools.partial(_jax, *arguments),
        torch=functools.cache(functools.partial(_torch, *arguments)),
        truth=functools.cache(functools.partial(_truth, *arguments)),
        covers=System(name, config).covers,
    )


def _jax(config, weights: Arrays, tokens: np.ndarray, dtype: DType) -> Values:
    with jax_precision(dtype):
        config = in_dtype(config, dtype)
        params, ids = to_params(config, weights, dtype), jnp.asarray(tokens)

        def by_token(params, tokens):
            cache = decode.init_cache(config, params, tokens.shape[0])
            prompt, cache = decode.extend(config, params, tokens[:, :PROMPT], cache)

            def step(cache, token):
                logits, cache = decode.extend(config, params, token[:, None], cache)
                return cache, logits[:, 0]

            _, rest = jax.lax.scan(step, cache, tokens[:, PROMPT:].T)
            return jnp.concatenate([prompt, jnp.swapaxes(rest, 0, 1)], axis=1)

        whole = jit(lambda params, tokens: mhc_jax.apply(config, params, tokens).logits_BTV, dtype)
        return _values(jit(by_token, dtype)(params, ids), whole(params, ids))


@torch.no_grad()
def _torch(config, weights: Arrays, tokens: np.ndarray, dtype: DType, sample: int) -> Values:
    module, ids = to_module(config, jitter(weights, sample), dtype), torch.from_numpy(tokens)
    logits, cache = [], module.init_cache(len(ids))
    for piece_BT in (ids[:, :PROMPT], *ids[:, PROMPT:].split(1, 1)):
        piece_BTV, cache = module.extend(piece_BT, cache)
        logits.append(piece_BTV)
    return _values(torch.cat(logits, 1), module(ids))


@torch.no_grad()
def _truth(config, weights: Arrays, tokens: np.ndarray, sample: int) -> Values:
    whole = to_module(config, jitter(weights, sample), "float64")(torch.from_numpy(tokens))
    return _values(whole, whole)


def _values(by_token, whole) -> Values:
    return {"forward logits by token": np.asarray(by_token), "forward logits at once": np.asarray(whole)}
