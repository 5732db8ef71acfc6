"""The functional interface: parameters are a plain nested dict and every function is pure.

``jax.vmap`` over :func:`init` and :func:`apply` trains ensembles; ``jax.jvp``, ``jax.hessian`` and
``jax.linearize`` work on whole models.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mhc_jax.config import ConfigError
from mhc_jax.nn.init import Init
from mhc_jax.nn.lm import LM, LMConfig, Output
from mhc_jax.precision import policy

Params = dict[str, Any]


@functools.lru_cache(maxsize=256)
def _abstract(config: LMConfig) -> tuple[Any, Any]:
    """Graph and parameter shapes of the model, without allocating it."""
    config.validate()
    return nnx.split(nnx.eval_shape(lambda: LM(config, Init(jax.random.key(0)))), nnx.Param)


def init(config: LMConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters as a plain nested dict; block parameters are stacked over layers.

    Raises:
        ConfigError: the configuration contradicts itself.
    """
    config.validate()
    return _init(config, key)


@functools.partial(jax.jit, static_argnums=0)
def _init(config: LMConfig, key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(LM(config, Init(key)), nnx.Param))


def param_shapes(config: LMConfig) -> Params:
    """The parameters' shapes and dtypes as a nested dict of ``jax.ShapeDtypeStruct``; allocates nothing."""
    shapes = nnx.to_pure_dict(_abstract(config)[1])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes)


def bind(config: LMConfig, params: Params) -> LM:
    """The module with these parameters. Runs at trace time only; costs nothing in a compiled function.

    Raises:
        ConfigError: a contradiction in the configuration, or a policy that needs 64-bit mode.
    """
    if config.execution.policy == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError("policy 'float64' needs 64-bit mode: jax.config.update('jax_enable_x64', True)")
    graph, state = _abstract(config)
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def apply(
    config: LMConfig,
    params: Params,
    tokens_BT: jax.Array,
    *,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    taps: bool = False,
    probes: dict[str, jax.Array] | None = None,
    batch_sharding: jax.sharding.Sharding | None = None,
) -> Output:
    """One forward pass.

    Args:
        config: the model.
        params: as from :func:`init`.
        tokens_BT: token ids, (B, T), T at most ``config.max_len``.
        positions: (B, T) absolute positions; 0 .. T-1 if omitted.
        segment_ids: (B, T); mixers keep tokens of different segments apart.
        dropout_key: switches dropout on.
        taps: also return named activations.
        probes: arrays added to the activations of those names; the gradient with respect to a zero
            probe is that activation's cotangent.
        batch_sharding: of arrays (B, ...) on several devices. Embedding, streams and hidden states are held to it,
            between layers and in the backward pass; what is sliced differently has to move.

    Raises:
        ConfigError: tokens that are not a (B, T) integer array or longer than ``max_len``.
    """
    check_tokens(config, tokens_BT)
    with jax.default_matmul_precision(policy(config.execution.policy).precision):
        return bind(config, params)(
            tokens_BT,
            positions=positions,
            segment_ids=segment_ids,
            key=dropout_key,
            taps=taps,
            probes=probes,
            batch_sharding=batch_sharding,
        )


def check_tokens(config: LMConfig, tokens_BT: jax.Array, *, start: int = 0) -> None:
    """Raises ConfigError unless the tokens are (B, T) integers and fit ``max_len`` after ``start`` others."""
    shape, dtype = jnp.shape(tokens_BT), jnp.result_type(tokens_BT)
    if len(shape) != 2 or not jnp.issubdtype(dtype, jnp.integer):
        raise ConfigError(f"tokens must be a (batch, time) array of integers, got shape {shape} and dtype {dtype}")
    if shape[1] == 0:
        raise ConfigError("tokens are empty: at least one token is needed")
    if start + shape[1] > config.max_len:
        raise ConfigError(
            f"a sequence of {start + shape[1]} tokens is longer than max_len {config.max_len}; "
            "shorten it, or train with a larger max_len"
        )
