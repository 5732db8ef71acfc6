"""SHC: bounds on singular values over depth, choices of components and of streams, causality, sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax.functional import parameter_count
from mhc_jax.models import shc, with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.init import Init
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.residual import SHCConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import Execution
from mhc_jax.nn.taps import Taps
from mhc_jax.ops import experts, projections, routing
from mhc_jax.ops.projections import LARGEST_SKEW, cayley_transform, spread_rotations
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import policy
from mhc_jax.tests.own import slow_unless

N, WIDTH, LAYERS = 4, 8, 6
TOKENS = jax.random.randint(jax.random.key(7), (2, 12), 0, 29)
BASE = LMConfig(
    vocab_size=29, max_len=12, width=WIDTH, layers=LAYERS, mixer=AttentionConfig(heads=2), mlp=GeluMLPConfig(hidden=8)
)


def model(**changes):
    config = with_topology(BASE, "shc")
    return config.replace(residual=config.residual.replace(adaptive=True, **changes))


@functools.cache
def moved(config, scale):
    """Every parameter far from where it starts."""
    leaves, tree = jax.tree.flatten(mhc_jax.init(config, jax.random.key(0)))
    noise = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [x + scale * noise.standard_normal(x.shape, np.float32) for x in leaves])


@functools.partial(jax.jit, static_argnums=0)
def taps_of(config, params, key=None):
    return mhc_jax.apply(config, params, TOKENS, taps=True, key=key).taps


def mixing(config, params, key=None):
    """H_res of all sites in order, (S, B, T, N, N), in float64."""
    taps = taps_of(config, params, key)
    sites = [taps[f"blocks.{name}.residual.h_res"] for name in ("mixer", "mlp")]
    return np.stack(sites, 1).reshape(-1, *sites[0].shape[1:]).astype(np.float64)


def singular(h):
    return np.linalg.svd(h, compute_uv=False)


@pytest.mark.parametrize("size", range(1, 7))
def test_the_cayley_transform_is_a_rotation_in_closed_form_and_solved(size):
    rows, columns = np.triu_indices(size, 1)
    rotation = jax.jit(lambda entries: cayley_transform(entries, size=size))
    for scale in (1e-3, 1.0, 1e3):
        entries = scale * np.random.default_rng(0).standard_normal((50, len(rows)))
        upper = np.zeros((50, size, size))
        upper[:, rows, columns] = entries
        skew, eye = upper - np.swapaxes(upper, 1, 2), np.eye(size)
        got = np.asarray(rotation(jnp.asarray(entries, jnp.float32)), np.float64)
        np.testing.assert_allclose(got @ np.swapaxes(got, 1, 2), np.broadcast_to(eye, got.shape), atol=1e-6)
        np.testing.assert_allclose(np.linalg.det(got), 1, atol=3e-6)
        np.testing.assert_allclose(got, np.linalg.solve(eye + skew, eye - skew), atol=1e-6 * max(scale, 1))
    assert rotation(jnp.asarray(entries, jnp.bfloat16)).dtype == jnp.bfloat16
    assert np.isfinite(rotation(jnp.full(len(rows), 1e30))).all()
    assert LARGEST_SKEW < 1e30


def test_components_start_as_shifts_half_of_which_no_cayley_transform_reaches():
    start = np.asarray(spread_rotations(jnp.zeros((N, 6)), size=N))
    np.testing.assert_array_equal(start, [np.roll(np.eye(N), c, 1) for c in range(N)])
    np.testing.assert_allclose(np.linalg.det(start), [1, -1, 1, -1], atol=1e-6)


@pytest.mark.parametrize("precision", slow_unless({"float32"}, ["float32", "bfloat16"]))
@pytest.mark.parametrize("scale", slow_unless({10.0}, [0.3, 10.0]))
def test_singular_values_lie_between_the_floor_and_one_over_all_depth(precision, scale):
    """Whatever the parameters: at each site, and of the product of all twelve, for every token and rank."""
    config = model(floor=0.2).replace(execution=Execution(policy=precision))
    h = mixing(config, moved(config, scale))
    assert len(h) == 2 * LAYERS
    least, most = singular(h).min(), singular(h).max()
    assert 0.2 ** (1 / 12) - 1e-5 <= least <= most <= 1 + 1e-5
    product = functools.reduce(lambda below, above: above @ below, h)
    values = singular(product)
    assert 0.2 - 1e-4 <= values.min() < values.max() <= 1 + 1e-4
    ranks = taps_of(config, moved(config, scale))["blocks.mlp.residual.rank"]
    assert scale < 1 or len(set(np.ravel(ranks).tolist())) > 1


def test_streams_in_bfloat16_keep_their_length_within_the_bounds_and_rounding():
    """Twelve sites whose branches give nothing: the state itself, rounded at every site."""
    config, sites = SHCConfig(floor=0.2), 12
    h = Streams.unstack(jax.random.normal(jax.random.key(3), (2, 5, N, WIDTH))).astype(jnp.bfloat16)
    before = np.linalg.norm(np.asarray(h.stack(), np.float64), axis=(-2, -1))

    @jax.jit
    def passed(h, key):
        module = config.build(WIDTH, policy("bfloat16"), Init(key, sites=sites))
        module.skew[...] = 3 * jax.random.normal(key, module.skew.shape)
        u_BTD, ctx = module.pre(h, scope := Scope.over(5))
        return module.post(h, jnp.zeros_like(u_BTD), ctx, scope)

    for index in range(sites):
        h = passed(h, jax.random.key(index))
        assert h.dtype == jnp.bfloat16
    ratio = np.linalg.norm(np.asarray(h.stack(), np.float64), axis=(-2, -1)) / before
    rounding = sites * 2.0**-9
    assert ratio.max() <= 1 + rounding
    assert ratio.min() >= 0.2 * (1 - rounding)


def test_opposite_rotations_cancel_without_a_floor_and_not_with_one():
    """The published mixture: half of I and half of nearly -I."""
    skew = jnp.zeros((2, 6)).at[1, jnp.array([0, 5])].set(1e4)
    mixed = projections.mixture(jnp.array([0.5, 0.5]), cayley_transform(skew, size=N))
    assert singular(mixed).max() < 1e-3
    kept = projections.identity_mix(mixed, jnp.asarray((1 - 0.9) / 2))
    assert singular(kept).min() > 0.9


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_token_uses_exactly_its_heaviest_components(k):
    logits = jax.random.normal(jax.random.key(0), (5, 6, 4))
    weight = np.asarray(routing.top_k_softmax(logits, k=k))
    assert ((weight > 0).sum(-1) == k).all()
    np.testing.assert_allclose(weight.sum(-1), 1, atol=1e-6)
    whole = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(
        weight, np.where(weight > 0, whole, 0) / (whole * (weight > 0)).sum(-1, keepdims=True), atol=1e-6
    )
    with pytest.raises(ValueError, match="k must be one of 1 to 4"):
        routing.top_k_softmax(logits, k=5)


@pytest.mark.parametrize("choices", [routing.FEW, routing.FEW + 1])
def test_few_choices_and_many_are_made_alike(choices):
    """Of equal logits the first are chosen; the softmax has the gradient of JAX's."""
    logits = jnp.round(2 * jax.random.normal(jax.random.key(0), (50, choices)))
    for k in (1, 3, choices - 1, choices):
        kept = jnp.any(jax.nn.one_hot(np.argsort(-logits, axis=-1, stable=True)[:, :k], choices), axis=-2)

        def expected(logits, kept=kept):
            return jax.nn.softmax(logits, axis=-1, where=kept)

        found, pull = jax.vjp(lambda logits, k=k: routing.top_k_softmax(logits, k=k), logits)
        np.testing.assert_allclose(found, jnp.where(kept, expected(logits), 0), rtol=1e-6)
        np.testing.assert_allclose(pull(logits)[0], jax.vjp(expected, logits)[1](logits)[0], atol=1e-6)
    narrow = logits.astype(jnp.bfloat16)
    error = routing.top_k_softmax(narrow, k=choices).astype(jnp.float32) - jax.nn.softmax(narrow.astype(jnp.float32))
    assert jnp.abs(error).max() < 0.005  # sums in bfloat16 are off by more
    largest = routing.top_k_softmax(jnp.full(choices, 3e38).at[0].set(-3e38), k=2)
    np.testing.assert_array_equal(largest, jnp.zeros(choices).at[1:3].set(0.5))


def test_balance_is_one_for_equal_use_and_the_number_of_components_for_one_alone():
    for logits, want in ((50.0 * jnp.eye(4)[jnp.arange(8) % 4], 1), (jnp.tile(50.0 * jnp.eye(4)[0], (8, 1)), 4)):
        assert routing.load_balance(logits, routing.top_k_softmax(logits, k=1)) == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
def test_only_sparse_weights_are_balanced_and_only_adaptive_ranks_are_penalised():
    for changes, names in (
        ({"adaptive": True}, {"routing_balance", "rank"}),
        ({"adaptive": True, "top_k": None}, {"rank"}),
        ({}, {"routing_balance"}),
    ):
        module = SHCConfig(**changes).build(WIDTH, policy("float32"), Init(jax.random.key(0)))
        module.pre(Streams.unstack(jax.random.normal(jax.random.key(1), (2, 5, N, WIDTH))), scope := Scope.over(5))
        found = scope.mean_penalties()
        assert found.keys() == names
        if "rank" in names:
            assert found["rank"] == pytest.approx(0.01)  # all streams at the start
        if "routing_balance" in names:
            assert 0.01 < found["routing_balance"] <= 0.04


def site(rank_logits, **changes):
    """A site whose tokens keep as many streams as these logits say, and nothing of their content."""
    config = SHCConfig(adaptive=True, **changes)
    module = config.build(WIDTH, policy("float32"), Init(jax.random.key(0), index=1, sites=4))
    module.phi[...] = jnp.zeros(module.phi.shape)
    module.bias[...] = module.bias[...].at[-N:].set(jnp.asarray(rank_logits, jnp.float32))
    module.skew[...] = jax.random.normal(jax.random.key(1), module.skew.shape)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(1, N + 1))
def test_streams_beyond_the_rank_are_left_alone(rank):
    module, taps = site(10 * np.eye(N)[rank - 1]), {}
    h = jax.random.normal(jax.random.key(2), (1, 2, N, WIDTH))
    u, ctx = module.pre(Streams.unstack(h), scope := Scope.over(2, taps=Taps(values=taps)))
    after = module.post(Streams.unstack(h), jnp.ones((1, 2, WIDTH)), ctx, scope).stack()
    np.testing.assert_array_equal(taps["rank"], rank)
    np.testing.assert_array_equal(after[..., rank:, :], h[..., rank:, :])
    assert (after[..., :rank, :] != h[..., :rank, :]).all()
    other = module.pre(Streams.unstack(h.at[..., rank:, :].set(0)), Scope.over(2))[0]
    np.testing.assert_array_equal(u, other)  # phi is 0, so that no choice depends on the content


@pytest.mark.slow
def test_ranks_are_drawn_in_training_as_their_softmax_says_and_fixed_in_evaluation():
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    h = Streams.unstack(jnp.ones((20, 100, N, WIDTH)))
    drawn = site(logits)
    for key, want in ((jax.random.key(5), [0.1, 0.4, 0.2, 0.3]), (None, [0, 1, 0, 0])):
        drawn.pre(h, Scope.over(100, key=key, taps=Taps(values=(taps := {}))))
        share = [(taps["rank"] == rank).mean() for rank in range(1, N + 1)]
        np.testing.assert_allclose(share, want, atol=0.04)  # four standard errors


@pytest.mark.slow
def test_the_choice_of_a_rank_learns_by_a_temperature_that_falls():
    h, y = (jax.random.normal(jax.random.key(i), (1, 2, *shape, WIDTH)) for i, shape in ((2, (N,)), (3, ())))

    @jax.jit
    def slopes(progress):
        """Of what is written, and of the penalty."""

        def both(logits):
            scope, module = Scope.over(2, progress=progress), site(logits)
            _, ctx = module.pre(Streams.unstack(h), scope)
            written = jnp.sum(module.post(Streams.unstack(h), y, ctx, scope).stack() ** 2)
            return jnp.stack([written, scope.mean_penalties()["rank"]])

        return jax.jacrev(both)(jnp.array([0.0, 0.5, 0.2, 0.1]))

    (early, _), (late, fewer) = slopes(jnp.array(0.0)), slopes(jnp.array(1.0))
    assert (early != 0).all()
    assert not np.allclose(early, late, rtol=0.5)
    np.testing.assert_array_equal(late, slopes(None)[0])
    assert fewer[0] < 0 < fewer[3]  # one stream costs less than four


def test_sizes_are_as_named_and_those_published_are_theirs():
    named = {"500m": 500e6, "1b": 1e9, "3b": 3e9, "7b": 7e9}
    published = {"500m": 542_802_192, "1b": 2_104_868_112, "3b": 4_330_070_208, "7b": 11_004_974_784}
    without = {"500m": 334_808_064, "1b": 1_273_645_056, "3b": 2_598_668_800, "7b": 6_573_789_184}
    for size, count in named.items():
        ours, plain = parameter_count(shc(size)), parameter_count(shc(size, "plain"))
        assert ours == pytest.approx(count, rel=0.025)
        assert 0 < ours / plain - 1 < 0.005
        assert parameter_count(shc(size, "original")) == published[size]
        assert parameter_count(shc(size, "original")) > 1.6 * without[size]
    with pytest.raises(mhc_jax.ConfigError, match="did you mean '500m'"):
        shc("500M")


@pytest.mark.slow
def test_an_expert_that_no_token_visits_changes_nothing():
    x, *matrices = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((2, 5, 8), *3 * [(3, 8, 8)]))
    )
    weight = jnp.tile(jnp.array([0.3, 0.0, 0.7]), (2, 5, 1))

    def total(gate, up, down):
        return jnp.sum(experts.swiglu_experts(x, weight, gate, up, down, k=2))

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    want, slopes = run(*matrices)
    got, _ = run(*(m.at[1].set(1e3) for m in matrices))
    assert got == want
    for slope in slopes:
        assert (slope[1] == 0).all()
        assert (slope[jnp.array([0, 2])] != 0).any(axis=(1, 2)).all()
