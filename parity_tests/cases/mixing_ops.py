"""The ops of hyper-connections (projections onto mixing matrices, coefficients of the token), attention, positions."""

from collections.abc import Iterator

import numpy as np
import torch.nn.functional as F

from mhc_jax.ops.projections import QUINTIC, SCHEDULE
from parity_tests.cases.ops import B, D, N, T, draw, op
from parity_tests.compare import Case

H, K = 2, 3


def cases() -> Iterator[Case]:
    for group in (_sinkhorn, _projections, _coefficients, _attention, _rotary):
        yield from group()


def _sinkhorn():
    logits, several = draw(logits_NN=(2, 4, 4)), draw(logits_NN=(B, T, 3, 3))
    for name in ("log_sinkhorn_columns_then_rows", "implicit_sinkhorn"):
        yield op(f"sinkhorn.{name}", "of 60", logits, iters=60, covers=IMPLICIT)
        yield op(f"sinkhorn.{name}", "of 200, cold, per token", several, iters=200, temperature=0.5)
    yield op("sinkhorn.log_sinkhorn_columns_then_rows", "of 1", logits, iters=1)
    yield op("sinkhorn.sinkhorn_clamped", "of 0", logits, iters=0)
    yield op("sinkhorn.sinkhorn_deepseek", "of 1", logits, iters=1)
    for name in ("sinkhorn_clamped", "sinkhorn_clipped", "sinkhorn_deepseek"):
        yield op(f"sinkhorn.{name}", "of 2", logits, iters=2)
        yield op(f"sinkhorn.{name}", "of 20, per token", several, iters=20)


# What implicit differentiation is made of in JAX.
IMPLICIT = frozenset({"op:sinkhorn.projection_tangent", "op:sinkhorn.solve_laplacian"})


def _projections():
    logits = draw(logits_NN=(2, 4, 4))
    for what, coefficients in (("quintic", QUINTIC), ("scheduled", SCHEDULE)):
        for normalise in (False, True):
            name = f"{what}, rows normalised" if normalise else what
            yield op("projections.orthostochastic", name, logits, coefficients=coefficients, normalise=normalise)
    for steps in (0, 2):
        yield op("projections.cayley", f"of {steps} steps", logits, alpha=0.5, steps=steps)
    for streams, count in ((1, 1), (3, 6), (4, 24)):
        yield op("projections.permutation_mixture", f"of {streams}", draw(logits_K=(B, T, count)), streams=streams)
    for factors in (1, 3):
        yield op("projections.kronecker_mixture", f"of {factors}", draw(logits_K2=(B, T, factors, 2)), positional=True)
    yield op("projections.spectral_sphere", "of 4", draw(u_K=(B, 3), v_K=(B, 3), s_M=(B, 3)), streams=4)
    yield op("projections.spectral_sphere", "of 2", draw(u_K=(0,), v_K=(0,), s_M=(1,)), streams=2)
    yield op("projections.circulant", "of 4", draw(logits_N=(B, T, 4)), gamma=0.3)
    yield op("projections.identity_mix", "", draw(mix_NN=(4, 4), alpha=()))
    yield op("projections.newton_birkhoff", "of 4", logits)
    yield op("projections.newton_birkhoff", "of 3, per token", draw(2.0, logits_NN=(B, T, 3, 3)))


def _coefficients():
    factor = frozenset({"op:norm.inverse_unit_rms"})
    yield op("norm.unit_rms_norm", "", draw(x=(B, T, D), gamma_D=(D,)), covers=factor)
    parts = draw(h_BTND=(B, T, N, D), fn_DK=(D, 4), scale=(), static_NK=(N, 4))
    yield op("hyper.dynamic_weights", "tanh", parts, tanh=True)
    yield op("hyper.dynamic_weights", "linear, a scale for each column", parts | draw(scale=(4,)), tanh=False)
    yield op("hyper.dynamic_weights", "of what a norm makes of x", parts | draw(scale=(4,), gamma_D=(D,)), tanh=True)
    state = draw(h_BTND=(B, T, N, D))
    yield op("hyper.flat_weights", "", state | draw(phi_KM=(6, N * D)), eps=1e-6)
    gate = draw(scale_ND=(N, D), down_RM=(2, N * D), up_MR=(N * D, 2))
    yield op("hyper.stream_gate", "", state | gate, eps=1e-6)
    yield op("streams.mix", "to fewer streams", state | draw(mix_MN=(B, T, 2, N)))


def _attention():
    heads = draw(q_BTHK=(B, T, H, K), k_BSGK=(B, T, H, K), v_BSGV=(B, T, H, K))
    segments = np.array([[0, 0, 0, 1, 1, 2, 2], [4, 4, 4, 4, 4, 5, 5]])
    path = "attention.causal_attention"
    yield op(path, "", heads)
    yield op(path, "in segments", heads | {"segment_ids": segments})
    yield op(path, "after a cache", heads | draw(q_BTHK=(B, 3, H, K)), start=4)
    yield op(path, "scaled, narrow values", heads | draw(v_BSGV=(B, T, H, 2)), scale=0.7)
    yield op(path, "grouped", heads | draw(q_BTHK=(B, T, 2 * H, K)))
    yield op(path, "both ways, in segments", heads | {"segment_ids": segments}, causal=False)
    padded = {"start_B": np.arange(B) + 2}
    yield op(path, "after padding and a cache", heads | padded | draw(q_BTHK=(B, 3, H, K)), start=4)
    positions = {"positions_BT": np.array([[0, 1, 2, 3, 4, 5, 6], [7, 9, 900, 0, 1, 2, 3]])}
    for layout in ("half", "interleaved"):
        yield op("rotary.rotate", layout, draw(x_BTHK=(B, T, H, 6)) | positions, layout=layout, base=100.0)
    turned = draw(x_BTHK=(B, T, H, 6), frequency_P=(3,)) | positions
    yield op("rotary.rotate", "by given frequencies", turned, gain=1.5)
    kept = {"keep_BHTS": (np.random.default_rng(9).random((B, H, T, T)) > 0.3).astype(np.float32) / 0.7}
    yield op(path, "with dropped probabilities", heads | kept, torch=_dropped_attention)


def _rotary():
    base = {"base": np.array(100.0, np.float32)}
    yield op("rotary.frequencies", "", base, width=6)
    # From one turn in 6 tokens to one in 250: fast, between and slow pairs for an original length of 64 tokens.
    frequency = {"frequency_P": np.asarray(100.0 ** (-np.arange(5) / 5), np.float32)}
    yield op("rotary.linear", "", frequency, factor=3.0)
    length = {"factor": 4.0, "original_max_position_embeddings": 64}
    yield op("rotary.llama3", "", frequency, low_freq_factor=1.0, high_freq_factor=4.0, **length)
    yarn = {"base": 100.0, "beta_fast": 6.0, "beta_slow": 0.5, **length}
    for truncate in (True, False):
        yield op("rotary.yarn", f"truncated {truncate}", frequency, truncate=truncate, **yarn)
    yield op("rotary.yarn", "at once", frequency, truncate=True, **yarn | {"beta_fast": 1e-9, "beta_slow": 1e-9})


def _dropped_attention(arrays):
    """The mirror draws its own dropout, so the given one is written out."""
    q, k, v = (arrays[name].transpose(1, 2) for name in ("q_BTHK", "k_BSGK", "v_BSGV"))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    hidden = scores.new_ones(scores.shape[-2:]).triu(1).bool()
    weights = F.softmax(scores.masked_fill(hidden, float("-inf")), -1) * arrays["keep_BHTS"]
    return (weights @ v).transpose(1, 2)
