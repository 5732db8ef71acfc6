"""Which numbers every part of a model takes."""

import pytest

from mhc_jax import registry
from mhc_jax.models import mhc_ssm
from mhc_jax.nn.adapters import StreamAdaptersConfig
from mhc_jax.tests.own import own
from mhc_jax.tests.ranges import ANY, COUNT, NATURAL, POSITIVE, RATE, SHARE, check

TEMPERATURE = {"from 1e-6": lambda x: x >= 1e-6}
LEAN = {"to 1": lambda x: x <= 1}
DYNAMIC = {
    "streams": COUNT, "alpha": ANY, "phi_std": NATURAL, "norm_eps": NATURAL, "pre_eps": NATURAL,
    "post_eps": RATE, "post_gain": {"above 1": lambda x: x > 1}, "read_lean": LEAN, "diagonal_bias": ANY,
}  # fmt: skip
PARTS = {
    "dynamic_mhc": DYNAMIC,
    "single_pass_mhc": DYNAMIC,
    "frac": {"fractions": COUNT},
    "gated": {"streams": COUNT, "rank": COUNT, "norm_eps": NATURAL},
    "hc": {"streams": COUNT, "views": COUNT, "fractions": COUNT},
    "multi_branch_hc": {"streams": COUNT, "branches": COUNT},
    "per_stream_mhc": {"streams": COUNT},
    "plain": {},
    "shc": {
        "streams": COUNT, "components": {"from top_k": lambda x: x >= 2}, "top_k": {"1 to 4": lambda x: 1 <= x <= 4},
        "balance": NATURAL, "floor": RATE, "identity_bias": ANY, "read_lean": LEAN, "rank_penalty": NATURAL,
        "temperature": TEMPERATURE, "final_temperature": TEMPERATURE,
    },
    "static_mhc": {
        "streams": COUNT, "diagonal_bias": ANY, "res_offset": ANY, "read_bias": ANY, "noise": NATURAL,
        "identity_mix": RATE,
    },
    "attention": {
        "heads": COUNT, "rotary_base": POSITIVE, "views": {"1 or 3": lambda x: x in (1, 3)},
        "init_std": POSITIVE, "dropout": RATE,
    },
    "gated_delta": {
        "heads": COUNT, "expand_v": POSITIVE, "norm_eps": NATURAL, "dropout": RATE, "init_std": POSITIVE,
        "chunk": COUNT, "conv_kernel": COUNT,
    },
    "gla": {
        "heads": COUNT, "expand_k": POSITIVE, "expand_v": POSITIVE, "gate_rank": COUNT, "gate_normalizer": POSITIVE,
        "norm_eps": NATURAL, "dropout": RATE, "init_std": POSITIVE, "chunk": COUNT,
    },
    "diagonal_ssm": {"conv_kernel": COUNT, "chunk": COUNT},
    "latent_attention": {
        "heads": COUNT, "rotary_base": POSITIVE, "mscale_all_dim": {"0 without YaRN": lambda x: x == 0},
        "init_std": POSITIVE, "dropout": RATE,
    },
    "selective_ssm": {"state": COUNT, "expand": COUNT, "conv_kernel": COUNT, "chunk": COUNT},
    "rms": {"eps": NATURAL},
    "ln": {"eps": NATURAL},
    "gelu_mlp": {"hidden": NATURAL, "init_std": POSITIVE},
    "swiglu": {"init_std": POSITIVE},
    "moe": {
        "experts": {"from top_k": lambda x: x >= 2}, "top_k": {"1 to 8": lambda x: 1 <= x <= 8}, "balance": NATURAL,
        "init_std": POSITIVE,
    },
    "linear": {"init_std": POSITIVE},
    "linear_mhc": {"flows": COUNT, "init_std": POSITIVE},
    "cayley": {"alpha": POSITIVE, "steps": NATURAL},
    "circulant": {"gamma": SHARE},
    "clamped_sinkhorn": {"iters": NATURAL},
    "clipped_sinkhorn": {"iters": NATURAL},
    "deepseek_sinkhorn": {"iters": COUNT, "eps": NATURAL},
    "identity": {},
    "kronecker": {},
    "newton": {"iters": COUNT},
    "orthostochastic": {"steps": NATURAL, "eps": POSITIVE},
    "permutations": {},
    "sinkhorn": {"iters": COUNT, "temperature": POSITIVE},
    "spectral_sphere": {},
    "copy": {"head_eps": NATURAL, "norm_eps": NATURAL},
    "dense": {},
}  # fmt: skip
FROM_1 = {"from 1": lambda x: x >= 1}
SCALINGS = {
    "linear": {"factor": FROM_1},
    "llama3": {
        "factor": FROM_1, "low_freq_factor": {"above 0, below 4": lambda x: 0 < x < 4},
        "high_freq_factor": {"above 1": lambda x: x > 1}, "original_max_position_embeddings": COUNT,
    },
    "yarn": {
        "factor": FROM_1, "beta_fast": FROM_1, "beta_slow": {"above 0, to 32": lambda x: 0 < x <= 32},
        "original_max_position_embeddings": COUNT,
    },
}  # fmt: skip
AXES = ("residual", "mixer", "channel", "projection", "ends", "norm")


@pytest.mark.parametrize(("axis", "kind"), [(axis, kind) for axis in AXES for kind in own(axis)])
def test_numbers_of_every_part(axis, kind):
    check(registry.get(axis, kind)(), PARTS[kind])


@pytest.mark.parametrize("kind", own("rotary_scaling"))
def test_numbers_of_every_scaling_of_rotary_positions(kind):
    check(registry.get("rotary_scaling", kind)(), SCALINGS[kind])


def test_numbers_of_the_model_and_of_adapters():
    sizes = dict.fromkeys(("vocab_size", "max_len", "layers"), COUNT)
    check(mhc_ssm(), sizes | {"width": COUNT, "dropout": RATE, "embed_std": POSITIVE, "stream_diversity": NATURAL})
    check(StreamAdaptersConfig(), {"rank": COUNT, "dropout": RATE})


def test_the_exponential_sinkhorn_may_have_no_iterations():
    sinkhorn = registry.get("projection", "sinkhorn")(domain="exp", order="rows_then_columns")
    check(sinkhorn, {"iters": NATURAL, "temperature": POSITIVE})
