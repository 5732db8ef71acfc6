"""Faults seeded in attention, in the projections and coefficients of hyper-connections, and around them."""

import types
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mhc_jax.nn.residual.base import streams_of, with_streams
from mhc_jax.ops import sinkhorn
from mhc_jax.ops.streams import Streams
from parity_tests.mutations import Mutation, Replace, argument, op, options

GPT, VALUES = "gpt", "gpt over mhc, constrained value residual"
DEEPSEEK = "gpt over deepseek_v4, value residual"


def mutations() -> Iterator[Mutation]:
    for group in (_attention, _projections, _coefficients, _models):
        yield from group()


def _attention():
    path = "attention.causal_attention"
    yield op("queries not scaled", path, argument("q_BTHK", lambda q: q * q.shape[-1] ** 0.5))
    yield op("attention ignores segments", path, options(segment_ids=None), "in segments")
    yield op("attention sees one token of the future", path, options(start=5), "after a cache")
    yield op("query heads dealt to key heads in turn", path, argument("k_BSGK", lambda k: k[:, :, ::-1]), "grouped")
    yield op("padding is seen", path, options(start_B=None), "after padding and a cache")
    yield op("rotations backwards", "rotary.rotate", argument("positions_BT", lambda p: -p), "half")
    yield op("YaRN's range not rounded", "rotary.yarn", options(truncate=False), "truncated True")
    yield op("LLaMA's range begins at one turn in half the length", "rotary.llama3", options(low_freq_factor=2.0))
    stale = "mhc_jax.nn.mixers.attention:Attention.__call__"
    yield Mutation("keys are written over the first ones", stale, _forgets_column, "decode", DEEPSEEK)


def _projections():
    paper, deepseek = "sinkhorn.log_sinkhorn_columns_then_rows", "sinkhorn.sinkhorn_deepseek"
    yield op("rows before columns in the paper's Sinkhorn", paper, lambda _: sinkhorn.log_sinkhorn, "of 1")
    yield op("DeepSeek's Sinkhorn without epsilon", deepseek, options(eps=0.0), "of 2")
    yield op("Newton-Schulz one step short", "projections.orthostochastic", _one_step_short, "quintic")
    yield op("first permutation is not the identity", "projections.permutation_mixture", _reversed("logits_K"), "of 3")
    yield op("Kronecker factors in reverse", "projections.kronecker_mixture", _factors_reversed, "of 3")
    yield op("circulant shifts backwards", "projections.circulant", _transposed, "of 4")
    yield op("Cayley of the symmetric part", "projections.cayley", argument("logits_NN", _symmetric), "of 2 steps")


def _coefficients():
    flat = "hyper.flat_weights"
    yield op("streams flattened channel by channel", flat, argument("h", _channels_first))
    yield op("coefficients' norm with epsilon 1e-5", flat, options(eps=1e-5))
    yield op("no tanh", "hyper.dynamic_weights", options(tanh=False), "tanh")
    normed = "of what a norm makes of x"
    yield op("gain of the norm left out", "hyper.dynamic_weights", argument("gamma_D", jnp.zeros_like), normed)
    raw = "mhc_jax.nn.residual.hyper_connections:streams"
    yield Mutation("HC discards its mixed streams", raw, _never_mixes, "modules", "site of topology hc")


def _models():
    gelu = "mhc_jax.nn.channel.gelu_mlp:jax"
    yield Mutation("the other GELU", gelu, _other_gelu, "models", GPT)
    values = "mhc_jax.nn.value_residual:ValueResidual.weights"
    yield Mutation("value-residual weights swapped", values, _swapped_values, "models", VALUES)
    collapse = "mhc_jax.nn.backbone:Backbone._collapse"
    yield Mutation("final norm before the collapse", collapse, _norm_first, "models", DEEPSEEK)


def _channels_first(h):
    return Streams.unstack(jnp.swapaxes(h.stack(), -1, -2))


def _forgets_column(healthy):
    return lambda self, u, state, scope: healthy(self, u, state, scope.replace(column=0))


def _one_step_short(healthy):
    def orthostochastic(logits_NN, *, coefficients, **options):
        return healthy(logits_NN, coefficients=coefficients[:-1], **options)

    return orthostochastic


def _reversed(name: str) -> Replace:
    return argument(name, lambda x: x[..., ::-1])


def _factors_reversed(healthy):
    return lambda logits_K2: healthy(logits_K2[..., ::-1, :])


def _transposed(healthy):
    return lambda **arrays: jnp.swapaxes(healthy(**arrays), -1, -2)


def _symmetric(x: jax.Array) -> jax.Array:
    return jnp.triu(x) - jnp.swapaxes(jnp.triu(x, 1), -1, -2)


def _never_mixes(healthy):
    """Stands in for the ops of streams in a site: square matrices act as the identity."""

    def mix(h, mix_MN):
        return h if mix_MN.shape[-2] == len(h) else healthy.mix(h, mix_MN)

    return types.SimpleNamespace(**{**vars(healthy), "mix": mix})


def _other_gelu(healthy):
    nn = types.SimpleNamespace(gelu=lambda x, approximate: healthy.nn.gelu(x, approximate=not approximate))
    return types.SimpleNamespace(nn=nn, Array=healthy.Array)


def _swapped_values(healthy):
    return lambda self: healthy(self)[::-1]


def _norm_first(healthy):
    def collapse(self, state, scope):
        h = streams_of(state).astype(self.policy.accumulate).each(self.final_norm)
        return scope.tap("hidden", self.ends.collapse(with_streams(state, h)))

    return collapse
