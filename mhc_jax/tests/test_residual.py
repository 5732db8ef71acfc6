"""Residual topologies and stream ends alone: what each documents about itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mhc_jax import ConfigError, registry
from mhc_jax.models import topologies
from mhc_jax.nn.ends import CopyEndsConfig
from mhc_jax.nn.init import Init
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.projections import IdentityProjectionConfig, OrthostochasticConfig, PermutationsConfig
from mhc_jax.nn.residual import (
    DynamicMHCConfig,
    FracConnectionsConfig,
    GatedResidualConfig,
    HyperConnectionsConfig,
    MultiBranchHCConfig,
    PerStreamMHCConfig,
    PlainConfig,
    SinglePassMHCConfig,
    StaticMHCConfig,
)
from mhc_jax.nn.residual.base import streams_of, with_streams
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.taps import Taps
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import policy

FLOAT32 = policy("float32")
WIDTH, N = 8, 4
SMALL = LMConfig(vocab_size=29, max_len=12, width=WIDTH, layers=3)
# All that start as the plain residual, except from noise, whose rows sum to one only nearly.
STREAMED = [
    name
    for name in registry.names("topology")
    if (found := topologies.topology(name)).starts_plain
    and found.residual.stream_count
    and getattr(found.residual, "noise", 0) == 0
]


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def site(config, index=1, *, perturbed=False):
    """A site's module, at its start or with every parameter moved."""
    module = config.build(WIDTH, FLOAT32, Init(jax.random.key(0), index=index, sites=6))
    if perturbed:
        noise = np.random.default_rng(0)
        state = jax.tree.map(
            lambda x: x + 0.3 * noise.standard_normal(x.shape, np.float32), nnx.state(module, nnx.Param)
        )
        nnx.update(module, state)
    return module


def passed(config, h, y, *, index=1, perturbed=False):
    """The state after a site whose branch returns ``y``, what it read, and its taps; streams are arrays here."""
    module = site(config, index, perturbed=perturbed)

    @jax.jit
    def run(h, y):
        before, scope = with_streams(h, held(config, streams_of(h))), Scope.over(1, taps=Taps(values={}))
        u, ctx = module.pre(before, scope)
        after = module.post(before, y, ctx, scope)
        return with_streams(after, as_array(streams_of(after))), u, scope.taps.values

    return run(h, y)


def held(config, h):
    """An array as the topology holds it."""
    return h if config.stream_count is None else Streams.unstack(h)


def as_array(h):
    return h.stack() if isinstance(h, Streams) else h


def begun(config, h):
    state = config.begin(held(config, h))
    return with_streams(state, as_array(streams_of(state)))


def output(config, y):
    """What a site gets if every run of its branch returns ``y``."""
    return jnp.stack([y] * config.branches) if config.branches > 1 else y


@pytest.mark.parametrize("name", STREAMED)
def test_coefficients_are_float32_in_bfloat16_models(name):
    config = topologies.topology(name).residual

    def run(h, y):
        module = config.build(WIDTH, policy("bfloat16"), Init(jax.random.key(0), sites=6))
        scope = Scope.over(2, taps=Taps(values={}))
        _, ctx = module.pre(state := config.begin(Streams.unstack(h)), scope)
        return scope.taps.values, module.post(state, output(config, y).astype(jnp.bfloat16), ctx, scope)

    taps, state = jax.eval_shape(run, draw(0, 1, 2, config.stream_count, WIDTH), draw(1, 1, 2, WIDTH))
    assert taps
    assert {x.dtype for x in jax.tree.leaves((taps, state))} == {np.dtype("float32")}


@pytest.mark.parametrize("name", STREAMED)
def test_equal_streams_stay_equal_at_the_start(name):
    """Mixing must be row-stochastic to rounding, writes one, and reads sum to one: a hundred sites must not drift."""
    config = topologies.topology(name).residual
    x, y = draw(0, 1, 2, WIDTH), draw(1, 1, 2, WIDTH)
    h = jnp.broadcast_to(x[..., None, :], (1, 2, config.stream_count, WIDTH))
    state = begun(config, h)
    after, u, _ = passed(config, state, output(config, y))
    np.testing.assert_allclose(streams_of(after), h + y[..., None, :], rtol=2e-6, atol=2e-6)
    if not site(config).normalised:
        np.testing.assert_allclose(u, jnp.broadcast_to(x, u.shape), rtol=2e-6, atol=2e-6)


def test_tokenbenders_orthostochastic_start_is_uniform_and_ours_is_not():
    quintic = OrthostochasticConfig(schedule="quintic", normalise=False, start="diagonal")
    for config, diagonal in (
        (StaticMHCConfig(projection=quintic, diagonal_bias=8.0, res_offset=-8.0), 0.25),
        (StaticMHCConfig(projection=OrthostochasticConfig()), 0.95),
    ):
        _, (_, _, res) = site(config).coefficients(None, Scope.over(1))
        np.testing.assert_allclose(jnp.diagonal(res), diagonal, atol=0.02)


def test_identity_mix_starts_at_its_share():
    _, (_, _, res) = site(StaticMHCConfig(identity_mix=0.25, diagonal_bias=0.0)).coefficients(None, Scope.over(1))
    np.testing.assert_allclose(res, 0.75 * np.eye(N) + 0.25 / N, atol=1e-6)


def test_without_mixing_streams_meet_in_reads_and_writes_alone():
    config = DynamicMHCConfig(projection=IdentityProjectionConfig(), read_lean=0.0)
    h, y = draw(0, 2, 3, N, WIDTH), draw(1, 2, 3, WIDTH)
    after, u, _ = passed(config, h, y)
    np.testing.assert_allclose(after, h + y[..., None, :], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(u, h.mean(-2), rtol=1e-5, atol=1e-6)
    module = site(config)
    assert (module.phi.shape, module.alpha.shape) == ((2 * N, N * WIDTH), (2,))


def test_single_pass_reads_with_the_weights_of_the_site_before():
    h, y = draw(0, 2, 3, N, WIDTH), draw(1, 2, 3, WIDTH)
    config = SinglePassMHCConfig()
    state = begun(config, h)
    first, u, _ = passed(config, state, y, perturbed=True)
    np.testing.assert_allclose(u, h.mean(-2), rtol=1e-5, atol=1e-6)
    # Everything but the read is dynamic mHC with the same parameters.
    usual, _, taps = passed(DynamicMHCConfig(), h, y, perturbed=True)
    np.testing.assert_allclose(first["streams"], usual, rtol=1e-6)
    np.testing.assert_allclose(first["read"], taps["h_pre"], rtol=1e-6)
    _, u, _ = passed(config, first, y, perturbed=True)
    np.testing.assert_allclose(u, jnp.einsum("btn,btnd->btd", first["read"], first["streams"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("S", "F", "rank"), [(1, 4, 3), (2, 2, 3), (4, 2, 7), (4, 4, 13), (1, 2, 2)])
def test_fractions_start_as_the_identity_and_as_published_do_not(S, F, rank):
    """The ranks are those of the published code, which reads its initial numbers by another layout."""
    h, y = draw(0, 1, 2, S, WIDTH), np.zeros((1, 2, WIDTH), np.float32)
    config = HyperConnectionsConfig(streams=S, fractions=F, dynamic=False)
    after, u, _ = passed(config, h, y)
    np.testing.assert_allclose(after, h, rtol=1e-6)
    np.testing.assert_allclose(u, h[:, :, 1 % S], rtol=1e-6)
    _, _, taps = passed(config.replace(fraction_init="published"), h, y, index=0)
    assert np.linalg.matrix_rank(taps["h_res"]) == rank


def test_published_fractions_read_as_the_published_code_does():
    config = HyperConnectionsConfig(streams=1, fractions=4, fraction_init="published", dynamic=False)
    _, _, taps = passed(config, draw(0, 1, 2, 1, WIDTH), draw(1, 1, 2, WIDTH), index=0)
    np.testing.assert_array_equal(jnp.argmax(taps["h_pre"], axis=-1), [0, 0, 0, 2])


def test_fractions_gain_their_own_part_of_the_branch_or_the_sum():
    y = np.zeros((1, 2, WIDTH), np.float32)
    y[..., 2] = 1.0  # the second of four parts
    x = draw(0, 1, 2, WIDTH)
    after, _, _ = passed(FracConnectionsConfig(), x, y)
    np.testing.assert_allclose(after, x + y, rtol=1e-6)
    after, _, _ = passed(HyperConnectionsConfig(streams=1, fractions=4), x[:, :, None], y)
    np.testing.assert_allclose(after[:, :, 0] - x, np.tile([1.0, 0.0], 4) * np.ones_like(x), atol=1e-6)


def test_discarded_mixing_leaves_the_streams():
    h, y = draw(0, 2, 3, N, WIDTH), np.zeros((2, 3, WIDTH), np.float32)
    np.testing.assert_array_equal(passed(HyperConnectionsConfig(mixed=False), h, y, perturbed=True)[0], h)
    assert (passed(HyperConnectionsConfig(), h, y, perturbed=True)[0] != h).any()


def test_branches_read_one_stream_each_in_turn():
    for index in range(5):
        _, u, _ = passed(
            MultiBranchHCConfig(branches=3), h := draw(0, 1, 2, N, WIDTH), draw(1, 3, 1, 2, WIDTH), index=index
        )
        source = [int(np.argmin(np.abs(h - u[i][:, :, None]).sum((0, 1, 3)))) for i in range(3)]
        assert source == [-(i + 3 * index) % N for i in range(3)]
        np.testing.assert_allclose(u, np.moveaxis(h[:, :, source], 2, 0), rtol=1e-6)


def test_gates_lean_on_one_stream_or_read_all_alike():
    h, y = draw(0, 2, 3, N, WIDTH), draw(1, 2, 3, WIDTH)
    x = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6)
    _, u, _ = passed(GatedResidualConfig(), h, y, index=5)
    np.testing.assert_allclose(u, np.einsum("n,btnd->btd", [0.1, 0.7, 0.1, 0.1], x), rtol=1e-4, atol=1e-5)
    _, u, _ = passed(GatedResidualConfig(form="published"), h, y)
    np.testing.assert_allclose(u, x.mean(-2) / 2, rtol=1e-4, atol=1e-5)


def test_published_per_stream_start():
    h, y = draw(0, 1, 2, N, WIDTH), draw(1, 1, 2, WIDTH)
    _, _, taps = passed(PerStreamMHCConfig(form="published"), h, y)
    np.testing.assert_allclose(taps["h_pre"][0, 0], [0.5, 0.731, 0.5, 0.5], atol=1e-3)
    np.testing.assert_allclose(taps["h_post"], 1.462, atol=1e-3)
    np.testing.assert_allclose(taps["h_res"][0, 0], np.full((4, 4), 0.175) + 0.3 * np.eye(4), atol=1e-3)


@pytest.mark.parametrize("collapse", ["mean", "sum", "head", "pool", "carried"])
def test_copies_collapse_to_what_they_copy(collapse):
    residual = SinglePassMHCConfig() if collapse == "carried" else StaticMHCConfig()
    config = CopyEndsConfig(collapse=collapse)
    config.validate()
    config.check(residual)
    ends, x = config.build(WIDTH, N, FLOAT32, Init(jax.random.key(0))), draw(0, 2, 3, WIDTH)
    out = ends.collapse(residual.begin(ends.expand(x)))
    np.testing.assert_allclose(out, (N if collapse == "sum" else 1) * x, rtol=1e-5, atol=1e-6)


def test_streams_may_start_with_a_vector_of_their_own():
    ends = CopyEndsConfig(stream_embed=True).build(WIDTH, N, FLOAT32, Init(jax.random.key(0)))
    ends.stream_embed[...] = draw(1, N, WIDTH)
    x = draw(0, 2, 3, WIDTH)
    np.testing.assert_allclose(ends.expand(x).stack(), x[:, :, None] + draw(1, N, WIDTH), rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (StaticMHCConfig(streams=0), "streams must be at least 1"),
        (StaticMHCConfig(identity_mix=1.0), r"identity_mix must lie in \[0, 1\), got 1.0"),
        (StaticMHCConfig(noise=-1.0), "noise must not be negative"),
        (DynamicMHCConfig(post_gain=1.0), r"writes of 1 lie outside .* = \(0.0, 1.0\); raise post_gain"),
        (DynamicMHCConfig(read_lean=1.5), "read_lean must be at most 1"),
        (DynamicMHCConfig(streams=7, projection=PermutationsConfig()), "7 streams have 5040 permutations"),
        (PerStreamMHCConfig(projection=PermutationsConfig()), "the projection 'permutations' takes no such matrix"),
        (HyperConnectionsConfig(fractions=0), "fractions must be at least 1"),
        (HyperConnectionsConfig(views=0), "views must be at least 1"),
        (MultiBranchHCConfig(branches=0), "branches must be at least 1"),
        (FracConnectionsConfig(fractions=0), "fractions must be at least 1"),
        (GatedResidualConfig(rank=0), "rank must be at least 1"),
    ],
)
def test_contradictions_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        config.validate()


@pytest.mark.parametrize(
    ("residual", "ends", "message"),
    [
        (PlainConfig(), CopyEndsConfig(), "the residual has no streams to expand to; use ends 'identity'"),
        (
            StaticMHCConfig(),
            CopyEndsConfig(collapse="carried"),
            "as 'single_pass_mhc' does, not 'static_mhc'",
        ),
    ],
)
def test_ends_refuse_what_they_cannot_serve(residual, ends, message):
    with pytest.raises(ConfigError, match=message):
        SMALL.replace(residual=residual, ends=ends).validate()


@pytest.mark.parametrize("config", [HyperConnectionsConfig(fractions=3), FracConnectionsConfig(fractions=3)])
def test_a_width_that_does_not_divide_is_refused(config):
    with pytest.raises(ConfigError, match="a width of 8 cannot be cut into 3 equal fractions"):
        site(config)
