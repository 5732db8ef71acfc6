"""Stream statistics against matrices and states whose numbers are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import diagnostics, registry
from mhc_jax.functional import param_shapes
from mhc_jax.models import SHCOriginalConfig, mhc_ssm, with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.tests.own import own, quickly

forward = jax.jit(mhc_jax.apply, static_argnames=("config", "taps"))
mixing, composite_gains = jax.jit(diagnostics.mixing), jax.jit(diagnostics.composite_gains)
singular_values, statistics = jax.jit(diagnostics.singular_values), jax.jit(diagnostics.statistics)
stream_geometry = jax.jit(diagnostics.stream_geometry)

SWAP = np.array([[0.0, 1.0], [1.0, 0.0]])
UNIFORM = np.full((2, 2), 0.5)
FREE = np.array([[1.0, 2.0], [-0.5, 0.25]])


def static(*matrices):
    """(S, 1, 1, N, N): one matrix a site, for all tokens."""
    return jnp.asarray(np.stack(matrices)[:, None, None], jnp.float32)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_mixing_of_known_matrices():
    found = mixing(static(np.eye(2), UNIFORM, SWAP, FREE))
    shares = [1 / 3, 2 / 3]
    entropy = -sum(p * math.log(p) for p in shares) / math.log(2)
    close(found["entropy"], [0, 1, 0, entropy])  # the signed row has the same shares as the other: 2/3 and 1/3
    close(found["identity_distance"], [0, math.sqrt(0.5), math.sqrt(2), math.sqrt((4 + 0.25 + 0.5625) / 2)])
    close(found["min_entry"], [0, 0.5, 0, -0.5])
    close(found["row_sum_min"], [1, 1, 1, -0.25])
    close(found["row_sum_max"], [1, 1, 1, 3])
    close(found["row_sum_mean"], [1, 1, 1, 1.375])
    close(found["row_sum_error"], [0, 0, 0, 2])
    close(found["column_sum_min"], [1, 1, 1, 0.5])
    close(found["column_sum_max"], [1, 1, 1, 2.25])
    close(found["column_sum_error"], [0, 0, 0, 1.25])


def test_gains_of_a_product():
    """FREE SWAP has the columns of FREE exchanged; SWAP FREE its rows: neither changes the greatest sum."""
    double = 2 * np.eye(2)
    found = composite_gains(static(SWAP, FREE, double, UNIFORM))
    product = UNIFORM @ double @ FREE @ SWAP
    close(found["forward_gain"], [1, 3, 6, np.abs(product.sum(1)).max()])
    close(found["backward_gain"], [1, 2.25, 4.5, np.abs(product.sum(0)).max()])


def test_gains_multiply_for_every_token_before_the_mean():
    """Token 0 mixes by A then B, token 1 by B then A; the mean matrices would give another number."""
    a, b = FREE, np.array([[0.0, 1.0], [3.0, 0.0]])
    h_res = jnp.asarray(np.stack([np.stack([a, b]), np.stack([b, a])])[:, None])  # (S, B=1, T=2, N, N)
    expected = np.mean([np.abs((b @ a).sum(1)).max(), np.abs((a @ b).sum(1)).max()])
    close(composite_gains(h_res)["forward_gain"][-1], expected)
    only_first = composite_gains(h_res, jnp.array([[True, False]]))
    close(only_first["backward_gain"][-1], np.abs((b @ a).sum(0)).max())


ROTATION = np.array([[0.6, -0.8], [0.8, 0.6]])


@pytest.mark.parametrize(
    ("matrices", "most", "least"),
    [
        ([ROTATION, SWAP, ROTATION], [1, 1, 1], [1, 1, 1]),  # orthogonal, permutations among them
        ([np.eye(2), UNIFORM], [1, 1], [1, 0]),  # doubly stochastic: 1 belongs to the uniform vector
        ([0.75 * np.eye(2) + 0.25 * SWAP], [1], [0.5]),
        ([np.diag([2.0, 0.5]), ROTATION], [2, 1], [0.5, 1]),
    ],
)
def test_singular_values_of_known_matrices(matrices, most, least):
    found = singular_values(static(*matrices))
    close(found["singular_max"], most)
    close(found["singular_min"], least)


def test_singular_values_over_depth_are_those_of_the_product_of_each_token():
    h_res = np.random.default_rng(0).normal(size=(3, 2, 5, 4, 4)).astype(np.float32)
    mask = np.array([[True, True, False, True, True], [False] * 4 + [True]])
    found = singular_values(jnp.asarray(h_res), jnp.asarray(mask))
    sites = h_res.astype(np.float64)[:, mask]
    products = [sites[0], sites[1] @ sites[0], sites[2] @ sites[1] @ sites[0]]
    for name, matrices in (("singular", sites), ("composite", products)):
        values = np.linalg.svd(np.stack(matrices), compute_uv=False)
        close(found[f"{name}_max"], values.max((1, 2)))
        np.testing.assert_allclose(found[f"{name}_min"], values.min((1, 2)), rtol=1e-3)


def test_matrices_of_some_tokens_are_decomposed():
    """Every second token of the row, if it has twice as many as the sample; the others are not looked at."""
    h_res = jnp.broadcast_to(jnp.eye(2), (1, 1, 2 * diagnostics.SAMPLE, 2, 2))
    close(singular_values(h_res.at[:, :, 1::2].mul(5))["singular_max"], [1])
    close(singular_values(h_res.at[:, :, -2].mul(5))["singular_max"], [5])


def test_routing_that_is_known():
    alike, first, second = [0.5, 0.5, 0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0]
    tokens = [[[alike], [alike]], [[first], [second]], [[first], [first]]]  # (S, T, R, C)
    found = diagnostics.routing(jnp.asarray(tokens)[:, None])
    close(found["routing_entropy"], [0.5, 0, 0])
    close(found["components_used"], [2, 2, 1])
    close(found["component_share"][:, 0], [alike, alike, first])
    masked = diagnostics.routing(jnp.asarray(tokens)[:, None], jnp.array([[True, False]]))
    close(masked["component_share"][1, 0], first)


def test_ranks_that_are_known():
    rank = jnp.array([[[1.0, 3, 3, 4]], [[2.0, 2, 2, 2]]])
    found = diagnostics.ranks(rank, 4)
    close(found["rank"], [2.75, 2])
    close(found["rank_share"], [[0.25, 0, 0.5, 0.25], [0, 1, 0, 0]])
    close(diagnostics.ranks(rank, 4, jnp.array([[True, False, False, True]]))["rank"], [2.5, 2])


@pytest.mark.parametrize(
    ("streams", "cosine", "effective"),
    [
        (np.ones((3, 4)), 1.0, 1.0),
        (np.eye(3, 4), 0.0, 3.0),
        (np.array([[1.0, 0], [-1, 0]]), -1.0, 1.0),
        (np.array([[1.0, 0], [0, 2]]), 0.0, 25 / 17),  # l = 1, 4
        (1e-6 * np.eye(3, 4), 0.0, 3.0),
        (np.ones((1, 4)), 1.0, 1.0),
    ],
)
def test_cosine_and_effective_number(streams, cosine, effective):
    state = jnp.broadcast_to(jnp.asarray(streams, jnp.float32), (2, 1, 3, *streams.shape))
    found = stream_geometry(state)
    close(found["stream_cosine"], [cosine] * 2)
    close(found["effective_streams"], [effective] * 2)


def test_effective_number_is_that_of_the_singular_values():
    state = jax.random.normal(jax.random.key(0), (1, 1, 1, 4, 6))
    squared = np.linalg.svd(state[0, 0, 0], compute_uv=False) ** 2
    close(stream_geometry(state)["effective_streams"], [squared.sum() ** 2 / (squared**2).sum()])


def test_masked_tokens_do_not_count():
    h_res = jnp.asarray(np.stack([np.eye(2), 5 * UNIFORM]))[None, None]  # one site, two tokens
    found = mixing(h_res, jnp.array([[True, False]]))
    close(found["row_sum_max"], [1])
    close(found["min_entry"], [0])
    close(found["entropy"], [0])
    state = jnp.stack([jnp.eye(2), jnp.ones((2, 2))])[None, None]
    close(stream_geometry(state, jnp.array([[True, False]]))["stream_cosine"], [0])


def model(**changes):
    return mhc_ssm(vocab_size=32, max_len=8, width=8, layers=2).replace(**changes)


def taps_of(config):
    params = mhc_jax.init(config, jax.random.key(0))
    return forward(config, params, jnp.arange(8)[None], taps=True).taps


@pytest.mark.slow
def test_sites_of_both_kinds_alternate_through_depth():
    config = model(mlp=GeluMLPConfig())
    taps = taps_of(config)
    found = statistics(taps)
    assert diagnostics.site_names(config) == ["0 mixer", "0 mlp", "1 mixer", "1 mlp"]
    assert {len(x) for x in found.values()} == {4}
    close(found["h_res"][1], taps["blocks.mlp.residual.h_res"][0])
    close(found["h_pre"][2], taps["blocks.mixer.residual.h_pre"][1])
    close(found["stream_cosine"][3], stream_geometry(taps["blocks.mlp.state"])["stream_cosine"][1])
    assert np.all(np.diff(found["forward_gain"]) < 1e-3)  # doubly stochastic: no amplification


@pytest.mark.slow
def test_coefficients_of_every_token_are_averaged():
    taps = taps_of(model())
    taps["blocks.mixer.residual.h_res"] = jnp.roll(jnp.eye(4), 1, 0) * jnp.ones((2, 1, 1))
    per_token = {name: x for name, x in taps.items() if "h_" in name}
    scale = jnp.array([0.5, 1.5, 1, 1, 1, 1, 1, 1])[None, None]
    for name, x in per_token.items():
        taps[name] = scale.reshape(1, 1, 8, *(1,) * (x.ndim - 1)) * x[:, None, None]
    found = statistics(taps)
    for name in ("h_pre", "h_post", "h_res"):
        close(found[name], per_token[f"blocks.mixer.residual.{name}"])
    close(found["row_sum_max"], [1.5, 1.5])
    close(found["row_sum_min"], [0.5, 0.5])
    close(found["forward_gain"], [1, (0.25 + 2.25 + 6) / 8])


@pytest.mark.parametrize("topology", [quickly(name, topology=name) for name in registry.names("topology")])
def test_every_topology_is_understood(topology):
    """Nothing of batch or time is left in what comes out, and both sites of every layer are there."""
    config = with_topology(model(width=24, mlp=GeluMLPConfig()), topology)
    params, tokens = param_shapes(config), jax.ShapeDtypeStruct((5, 7), jnp.int32)

    def look(params, tokens):
        return statistics(forward(config, params, tokens, taps=True).taps)

    found = jax.eval_shape(look, params, tokens)
    assert found or config.residual.stream_count is None
    if topology in own("topology"):
        assert bool(found) == (config.residual.kind != "plain")
    for name, x in found.items():
        assert x.shape[0] == 4, name
        assert not {5, 7} & set(x.shape[1:]), name
        assert x.ndim == 1 or name in (*diagnostics.COEFFICIENTS, "component_share", "rank_share")


@pytest.mark.slow
def test_dynamic_signed_mixing_token_by_token():
    config = with_topology(model(), "hc")
    params = mhc_jax.init(config, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
    taps = forward(config, params, jnp.arange(8)[None], taps=True).taps
    found = statistics(taps)
    h = np.asarray(taps["blocks.mixer.residual.h_res"], np.float64)[:, 0]
    assert h.shape == (2, 8, 4, 4)
    products = h[1] @ h[0]
    close(found["forward_gain"][1], np.abs(products.sum(-1)).max(-1).mean())
    close(found["backward_gain"][1], np.abs(products.sum(-2)).max(-1).mean())
    close(found["min_entry"], h.min((1, 2, 3)))
    close(found["row_sum_error"], np.abs(h.sum(-1) - 1).max((1, 2)))
    close(found["h_res"], h.mean(1))
    assert np.all(found["min_entry"] < 0)
    assert np.all(found["entropy"] < 1)


@pytest.mark.slow
def test_components_and_ranks_of_shc():
    config = with_topology(model(mlp=GeluMLPConfig()), "shc")
    config = config.replace(residual=config.residual.replace(adaptive=True))
    taps = taps_of(config)
    found = statistics(taps)
    assert found["component_share"].shape == (4, 3, 4)
    close(found["component_share"].sum(-1), np.ones((4, 3)))
    close(found["component_share"][2, 1], taps["blocks.mixer.residual.alpha_res"][1].mean((0, 1)))
    close(found["rank"], taps["blocks.mixer.residual.rank"].mean() * np.ones(4))
    assert np.all(found["singular_max"] <= 1 + 1e-6)
    assert np.all(found["composite_min"] >= config.residual.floor)


@pytest.mark.slow
def test_the_published_shc_has_one_site_a_block_whose_matrices_belong_to_a_row():
    config = SHCOriginalConfig(vocab_size=32, max_len=8, width=8, layers=2, heads=2)
    params, tokens = mhc_jax.init(config, jax.random.key(0)), jnp.arange(16).reshape(2, 8)
    taps = forward(config, params, tokens, taps=True).taps
    found = statistics(taps)
    assert diagnostics.site_names(config) == ["0 block", "1 block"]
    close(found["h_res"], taps["blocks.routing.h_res"].mean(1))
    close(found["composite_min"], np.linalg.svd(_products(taps["blocks.routing.h_res"]))[1].min((1, 2)))
    close(found["component_share"][1, 2], taps["blocks.routing.alpha_post"][1].mean(0))
    assert not {"h_pre", "rank", "stream_cosine"} & found.keys()
    last = np.zeros((2, 8), bool)
    last[1] = True
    close(statistics(taps, jnp.asarray(last))["h_res"], taps["blocks.routing.h_res"][:, 1])
    single = config.replace(streams=1)
    taps = forward(single, mhc_jax.init(single, jax.random.key(0)), tokens, taps=True).taps
    assert statistics(taps) == {}


def _products(h_res):
    return np.stack([h_res[0], h_res[1] @ h_res[0]])


def test_without_mixing_every_stream_stays():
    taps = taps_of(model())
    del taps["blocks.mixer.residual.h_res"]
    del taps["blocks.mixer.residual.h_pre"]
    found = statistics(taps)
    close(found["h_res"], np.stack([np.eye(4)] * 2))
    close(found["forward_gain"], [1, 1])
    assert "h_pre" not in found


def test_fractions_of_a_plain_state_are_its_streams():
    taps = {"blocks.mixer.state": jnp.tile(jnp.eye(2).reshape(-1), (1, 1, 3, 1))}
    taps |= {f"blocks.mixer.residual.{name}": jnp.eye(2)[None] for name in ("h_pre", "h_res")}
    found = statistics(taps)
    close(found["effective_streams"], [2])
    assert found["h_pre"].shape == (1, 2, 2)


def test_a_plain_residual_has_no_statistics():
    assert statistics(taps_of(mhc_ssm("baseline", vocab_size=32, max_len=8, width=8, layers=2))) == {}
