"""Faults seeded in gated linear attention and in the gated delta rule."""

from collections.abc import Iterator

import jax.numpy as jnp

from parity_tests.faults.mhc_ssm import stale_state
from parity_tests.mutations import Mutation, argument, op, options

GLA, DELTA = "gla", "gated_delta"
CHUNKED = "chunked, 7 tokens, chunks of 4"
GROUPED_GLA = "gla over mhc, grouped heads, convolutions"
GROUPED_DELTA = "gated_delta over mhc, grouped heads, no convolutions"


def mutations() -> Iterator[Mutation]:
    yield op("sums between tokens begin one early", "chunks.sums_between", _one_early)
    for path in ("delta_rule.gated_delta_rule", "gla.gated_linear_attention"):
        module, name = path.split(".")
        yield op(f"{name} never resets", path, options(reset_BT=None), CHUNKED)
        yield op(f"{name} with scores twice as large", path, argument("q_BTHK", _doubled), CHUNKED)
        ops = f"mhc_jax.ops.{module}"
        chunked, recurrent = f"{path} {CHUNKED}", f"{path} recurrent, 7 tokens, chunks of 3"
        yield Mutation(f"{name} loses the state between chunks", f"{ops}:_chunk", _without_past, "ops", chunked)
        yield Mutation(f"{name} reads before it writes", f"{ops}:_step", _read_first, "ops", recurrent)
    inverse, case = "mhc_jax.ops.delta_rule:_unit_lower_inverse", f"delta_rule.gated_delta_rule {CHUNKED}"
    yield Mutation("tokens of a chunk do not see corrections", inverse, _unsolved, "ops", case)
    halves = "mhc_jax.ops.gla:_scores"
    yield Mutation("keys decay one token less", halves, _late_decay, "ops", f"gla.gated_linear_attention {CHUNKED}")
    yield from _mixers()


def _mixers():
    frame, delta = "mhc_jax.nn.mixers.linear_attention:", "mhc_jax.nn.mixers.gated_delta:"
    active = f"{frame}LinearAttentionConfig.activates"
    yield Mutation("GLA activates without a convolution", active, lambda _: property(lambda _: True), "models", GLA)
    yield Mutation("heads repeated in turn", f"{frame}repeated", lambda _: _in_turn, "models", GROUPED_GLA)
    yield Mutation("queries and keys of any length", f"{delta}_of_length_one", lambda _: lambda x: x, "models", DELTA)
    yield Mutation("length with another epsilon", f"{delta}LENGTH_EPS", lambda _: 1e-5, "models", DELTA)
    yield Mutation("no negative eigenvalue", f"{delta}gated_delta_rule", _half_as_strong, "models", GROUPED_DELTA)
    for part, what in (("matrix", "matrix"), ("inputs", "inputs of the convolutions")):
        yield Mutation(
            f"stale {what} in the cache", f"{frame}LinearAttention.__call__", stale_state(part), "decode", DELTA
        )


def _doubled(x):
    return 2 * x


def _one_early(healthy):
    return lambda x_CK: healthy(x_CK) + x_CK[..., None, :, :]


def _without_past(healthy):
    def chunk(*arguments):
        *options, s_BHKV, piece = arguments
        return healthy(*options, 0 * s_BHKV, piece)

    return chunk


def _late_decay(healthy):
    """Scores as if the decay of a query's own token were not yet there."""

    def scores(q, k, log_decay):
        shifted = jnp.pad(log_decay, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
        return healthy(q, k, shifted)[0], *healthy(q, k, log_decay)[1:]

    return scores


def _read_first(healthy):
    def step(s_BHKV, token):
        after, y_BM = healthy(s_BHKV, token)
        q_BHK = token[0].reshape(s_BHKV.shape[:-1])
        return after, jnp.einsum("bhkv,bhk->bhv", s_BHKV, q_BHK).reshape(y_BM.shape)

    return step


def _unsolved(healthy):
    """The right side of a system as its solution."""
    return lambda l_CC: jnp.broadcast_to(jnp.eye(l_CC.shape[-1], dtype=l_CC.dtype), l_CC.shape)


def _in_turn(x_BTGM, heads):
    return jnp.tile(x_BTGM, (1, 1, heads // x_BTGM.shape[2], 1))


def _half_as_strong(healthy):
    def rule(q, k, v, log_decay, beta, *state, **options):
        return healthy(q, k, v, log_decay, beta / 2, *state, **options)

    return rule
