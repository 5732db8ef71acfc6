"""Faults seeded in the parts of mHC-SSM, and in what all models share."""

import types
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from mhc_jax.ops.streams import Streams
from parity_tests.mutations import Mutation, Replace, argument, op, options

MHC, ADAPTERS, REPAIRED, BASELINE = (
    "mhc 4, original, rms",
    "adapters 4, rms",
    "mhc 2, ln, chunked",
    "baseline, original, rms",
)


def mutations() -> Iterator[Mutation]:
    for group in (_norms, _sinkhorn, _sequence, _streams, _models, _decoding):
        yield from group()


def _norms():
    yield op("RMSNorm with epsilon 1e-5", "norm.rms_norm", options(eps=1e-5))
    yield op("LayerNorm with epsilon 1e-6", "norm.layer_norm", options(eps=1e-6))
    yield op("LayerNorm without bias", "norm.layer_norm", argument("bias_D", jnp.zeros_like))


def _sinkhorn():
    plain, log = "sinkhorn.sinkhorn_rows_then_columns", "sinkhorn.log_sinkhorn"
    yield op("Sinkhorn columns before rows", plain, _columns_then_rows, "of 2")
    yield op("Sinkhorn without epsilon", plain, options(eps=0.0), "of 2")
    yield op("Sinkhorn one iteration short", log, options(iters=1), "of 2")
    yield op("Sinkhorn ignores its temperature", log, options(temperature=1.0), "of 8, cold")
    yield op("no gradient through Sinkhorn", log, argument("logits_NN", jax.lax.stop_gradient), "of 1")


def _sequence():
    conv, mixers = "conv.causal_depthwise_conv", "mhc_jax.nn.mixers."
    yield op("convolution flipped", conv, argument("filter_KD", lambda taps: taps[::-1]), "of 3")
    yield op("convolution without bias", conv, argument("bias_D", jnp.zeros_like), "of 3")
    yield op("convolution ignores segments", conv, options(segment_ids=None), "in segments")
    frame = f"{mixers}gated_ssm:"
    yield Mutation("convolution one token late", f"{frame}causal_depthwise_conv", _late_conv, "models", BASELINE)
    skipless = argument("d_D", jnp.zeros_like)
    yield Mutation(
        "pole not clipped", "mhc_jax.ops.diag_ssm:pole", lambda _: jax.nn.sigmoid, "ops", "diag_ssm.diag_ssm"
    )
    yield op("recurrence without skip", "diag_ssm.diag_ssm", skipless)
    yield op("recurrence forgets its state", "diag_scan.diagonal_scan", options(s0_BD=None), "chunked, varying")
    gate, silu = f"{mixers}diagonal_ssm:DiagonalSSM.gate", lambda _: staticmethod(jax.nn.silu)
    yield Mutation("gate SiLU instead of sigmoid", gate, silu, "models", BASELINE)
    yield Mutation("no activation after the convolution", f"{frame}jax", _without_silu, "models", BASELINE)


def _streams():
    def site(fault, target, replace, system):
        return Mutation(fault, f"mhc_jax.{target}", replace, "modules", f"site of {system}")

    def ends(fault, target, replace):
        return Mutation(fault, f"mhc_jax.{target}", replace, "modules", f"ends of {REPAIRED}")

    weights, gains = "nn.residual.static_mhc:StaticMHC.coefficients", "nn.adapters:StreamAdapters._adapt"
    unscaled = _weights(lambda config, pre, post, res: (pre, post / config.streams, res))
    swapped = _weights(lambda config, pre, post, res: (post, pre, res))
    rounded = _weights(lambda config, pre, post, res: (pre, post, _rounded(res)))
    yield site("mixing matrix transposed", "ops.streams:mix", _transposed, MHC)
    yield site("writing weights not scaled", weights, unscaled, REPAIRED)
    yield site("reading and writing weights swapped", weights, swapped, MHC)
    yield site("mixing matrix rounded to bfloat16", weights, rounded, MHC)
    yield site("adapter gains swapped", gains, _swapped_gammas, ADAPTERS)
    yield ends("streams cut interleaved", "ops.streams:split_streams", _interleaved)
    yield ends("collapse by the plain mean", "nn.ends.dense_ends:DenseEnds.collapse", _plain_mean)
    yield op("diversity over off-diagonals only", "streams.diversity", _off_diagonal_diversity)


def _models():
    yield Mutation("positions off by one", "mhc_jax.nn.lm:LM._embed", _late_positions, "models", REPAIRED)
    yield Mutation("branch reads without its norm", "mhc_jax.nn.block:Site._normalise", _unchanged, "models", REPAIRED)
    yield op("loss ignores the mask", "loss.cross_entropy", _unmasked_loss)


def _decoding():
    mixer = "mhc_jax.nn.mixers.gated_ssm:GatedSSM.__call__"
    for part, what in (("ssm", "recurrent state"), ("inputs", "convolution's inputs")):
        yield Mutation(f"stale {what} in the cache", mixer, stale_state(part), "decode", ADAPTERS)
    yield Mutation("column of the cache does not advance", "mhc_jax.decode:_advance", _stuck, "decode", REPAIRED)


def _columns_then_rows(healthy):
    def project(logits_NN, *, iters, temperature=1.0, eps=1e-8):
        p = jnp.exp((logits_NN - jnp.max(logits_NN, axis=-1, keepdims=True)) / temperature)
        for _ in range(iters):
            p = p / (jnp.sum(p, axis=-2, keepdims=True) + eps)
            p = p / (jnp.sum(p, axis=-1, keepdims=True) + eps)
        return p

    return project


def _without_silu(healthy):
    """Stands in for ``jax`` in the mixer."""
    return types.SimpleNamespace(nn=types.SimpleNamespace(silu=lambda x: x), Array=healthy.Array)


def _late_conv(healthy):
    def conv(u_BTD, filter_KD, bias_D, history_BJD=None, *, segment_ids=None):
        y_BTD = healthy(u_BTD, filter_KD, bias_D, history_BJD, segment_ids=segment_ids)
        return jnp.pad(y_BTD, ((0, 0), (1, 0), (0, 0)))[:, :-1]

    return conv


def _weights(change: Callable) -> Replace:
    """Other mixing weights: ``change(config, pre, post, res)``."""

    def replace(healthy):
        def coefficients(self, h, scope):
            h, found = healthy(self, h, scope)
            return h, change(self.config, *found)

        return coefficients

    return replace


def _swapped_gammas(healthy):
    def adapt(self, x, gamma, key):
        return healthy(self, x, self.gamma_post if gamma is self.gamma_pre else self.gamma_pre, key)

    return adapt


def _rounded(x: jax.Array) -> jax.Array:
    """Through bfloat16 where the run is in float32; the float64 run stays exact."""
    return x.astype(jnp.bfloat16).astype(x.dtype) if x.dtype == jnp.float32 else x


def _unmasked_loss(healthy):
    def cross_entropy(logits_BTV, targets_BT, *, ignore=-100):
        return healthy(logits_BTV, jnp.maximum(targets_BT, 0), ignore=ignore)

    return cross_entropy


def _off_diagonal_diversity(healthy):
    return lambda h: healthy(h) * len(h) / (len(h) - 1)


def _transposed(healthy):
    return lambda h, mix_MN: healthy(h, jnp.swapaxes(mix_MN, -1, -2))


def _interleaved(healthy):
    def split(x_BTM, streams):
        return Streams.unstack(jnp.swapaxes(healthy(x_BTM, x_BTM.shape[-1] // streams).stack(), -1, -2))

    return split


def _plain_mean(healthy):
    return lambda self, state: state.total() / len(state)


def _late_positions(healthy):
    return lambda self, tokens, positions: healthy(self, tokens, positions + 1)


def _unchanged(healthy):
    return lambda self, u_BTD: u_BTD


def stale_state(part: str) -> Replace:
    """One part of a mixer's state is not updated by the tokens."""

    def replace(healthy):
        def mixer(self, u, state, scope):
            y, after = healthy(self, u, state, scope)
            return y, after if after is None else {**after, part: state[part]}

        return mixer

    return replace


def _stuck(healthy):
    def advance(config, params, tokens, cache):
        *found, after = healthy(config, params, tokens, cache)
        return *found, {**after, "column": cache["column"]}

    return advance
