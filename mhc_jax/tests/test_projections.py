"""Projections onto mixing matrices: published numbers, what each promises of its result, and their derivatives."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from mhc_jax import ConfigError, registry
from mhc_jax.nn import projections as configs
from mhc_jax.nn.residual import StaticMHCConfig
from mhc_jax.ops import projections as p
from mhc_jax.ops import sinkhorn

LOGITS = 1.5 * np.sin(0.9 * np.arange(16) + 0.13 * np.arange(16) ** 2 + 0.8).reshape(4, 4)
KINDS = registry.names("projection")
columns_then_rows = jax.jit(sinkhorn.log_sinkhorn_columns_then_rows, static_argnames=("iters", "temperature"))
newton = jax.jit(p.newton_birkhoff, static_argnames="iters")


def fill(*shape):
    """The deterministic inputs of the published numbers."""
    return 1.5 * np.sin(0.9 * np.arange(math.prod(shape)) + 0.8).reshape(shape)


def projection(config, n):
    return jax.jit(lambda logits: config.project(logits, n))


@partial(jax.jit, static_argnames="n")
def sphere(z_K, n):
    k = (n - 1) * (n - 2) // 2
    return p.spectral_sphere(z_K[..., :k], z_K[..., k : 2 * k], z_K[..., 2 * k :], streams=n)


def transposed(project, **options):
    """For code bases that store the transpose of H_res: their matrix from their logits."""
    return project(LOGITS.T, **options).T


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# The first row of each matrix as its source prints it, from an independent reading of the same source.
GOLDEN = {
    "tokenbender, 10 iterations": (
        lambda: transposed(sinkhorn.log_sinkhorn_columns_then_rows, iters=10),
        [0.52018449, 0.32048765, 0.13989288, 0.0194249],
    ),
    "tokenbender, temperature 0.05": (
        lambda: transposed(sinkhorn.log_sinkhorn_columns_then_rows, iters=10, temperature=0.05),
        [0.99950535, 0.11230863, 0.0, 0.0],
    ),
    "lucidrains, 20 iterations": (
        lambda: transposed(sinkhorn.sinkhorn_clamped, iters=20),
        [0.52017993, 0.32048552, 0.13991031, 0.01942424],
    ),
    "DeepSeek-V4, 20 iterations": (
        lambda: transposed(sinkhorn.sinkhorn_deepseek, iters=20),
        [0.52017801, 0.32048545, 0.13991058, 0.01942495],
    ),
    "DeepSeek-V4, 2 iterations": (
        lambda: transposed(sinkhorn.sinkhorn_deepseek, iters=2),
        [0.53100276, 0.32982004, 0.13606043, 0.02055929],
    ),
    "orthostochastic, 5 quintic steps": (
        lambda: p.orthostochastic(LOGITS, coefficients=p.QUINTIC),
        [0.06605047, 0.41212755, 0.02224196, 0.49444495],
    ),
    "orthostochastic, 8 scheduled steps": (
        lambda: p.orthostochastic(LOGITS, coefficients=p.SCHEDULE),
        [0.07092734, 0.4224319, 0.01910254, 0.48646608],
    ),
    "Cayley, 2 steps": (lambda: p.cayley(LOGITS), [0.98917832, 0.12436149, 0.07429543, -0.00951451]),
    "Cayley, exact": (lambda: p.cayley(LOGITS, steps=0), [0.98940349, 0.12417785, 0.07461408, -0.00966094]),
    "mHC-lite": (
        lambda: p.permutation_mixture(fill(24), streams=4),
        [0.2415017, 0.2544349, 0.25558082, 0.24848257],
    ),
    "KromHC": (lambda: p.kronecker_mixture(fill(2, 2)), [0.31316501, 0.08539635, 0.47257351, 0.12886514]),
    "sHC": (lambda: sphere(fill(9), 4), [0.0210683, 0.5595025, 0.60133663, -0.18190744]),
    "circulant": (lambda: p.circulant(fill(4), gamma=0.5), [0.64495968, 0.21874763, 0.10709042, 0.02920228]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_published_numbers(name, x64):
    project, want = GOLDEN[name]
    np.testing.assert_allclose(project()[0], want, atol=6e-9)


def test_published_numbers_off_the_first_row(x64):
    """Rows that tell a matrix from its transpose, and one shift from its inverse."""
    lite = p.permutation_mixture(fill(24), streams=4)
    np.testing.assert_allclose(lite[:, 0], [0.2415017, 0.12696087, 0.34945443, 0.282083], atol=6e-9)
    np.testing.assert_allclose(sphere(fill(9), 4)[3], [0.12847474, 0.24238201, 0.33056235, 0.29858091], atol=6e-9)
    np.testing.assert_allclose(
        p.circulant(fill(4), gamma=0.5)[1], [0.02920228, 0.64495968, 0.21874763, 0.10709042], atol=6e-9
    )
    np.testing.assert_allclose(
        transposed(sinkhorn.sinkhorn_deepseek, iters=20)[2], [0.11345329, 0.2591956, 0.06929909, 0.558051], atol=6e-9
    )


STOCHASTIC = {
    "columns then rows": (partial(columns_then_rows, iters=20), lambda n: (n, n)),
    "rows then columns": (jax.jit(partial(sinkhorn.log_sinkhorn, iters=20)), lambda n: (n, n)),
    "clamped": (jax.jit(partial(sinkhorn.sinkhorn_clamped, iters=20)), lambda n: (n, n)),
    "DeepSeek": (jax.jit(partial(sinkhorn.sinkhorn_deepseek, iters=20)), lambda n: (n, n)),
    "Newton": (newton, lambda n: (n, n)),
    "permutations": (lambda z: p.permutation_mixture(z, streams=math.isqrt(z.shape[-1]) + 1), None),
    "orthostochastic": (
        jax.jit(partial(p.orthostochastic, coefficients=p.SCHEDULE, normalise=True)),
        lambda n: (n, n),
    ),
    "circulant": (jax.jit(partial(p.circulant, gamma=0.3)), lambda n: (n,)),
}
EXACT_ROWS = {"columns then rows", "Newton", "orthostochastic", "circulant"}
EXACT_COLUMNS = {"rows then columns", "clamped", "Newton", "circulant"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STOCHASTIC.keys() - {"permutations"}))
@given(n=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_stochastic_matrices(name, n, seed):
    project, shape = STOCHASTIC[name]
    h = np.asarray(project(np.random.default_rng(seed).standard_normal((2, *shape(n)), np.float32)))
    assert h.shape == (2, n, n)
    assert (h >= 0).all()
    if name in EXACT_ROWS:
        np.testing.assert_allclose(h.sum(-1), 1, atol=3e-6)
    if name in EXACT_COLUMNS:
        np.testing.assert_allclose(h.sum(-2), 1, atol=3e-6)
    if name == "DeepSeek":
        np.testing.assert_allclose(h.sum(-1), 1, atol=n * 2e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_mixtures_of_permutations_are_doubly_stochastic(n):
    h = p.permutation_mixture(3 * fill(2, math.factorial(n)), streams=n)
    assert (h >= 0).all()
    np.testing.assert_allclose(h.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(h.sum(-2), 1, atol=1e-6)
    with pytest.raises(ValueError, match=f"{n} streams have {math.factorial(n)} permutations, but there are 7 logits"):
        p.permutation_mixture(fill(7), streams=n)


@pytest.mark.parametrize("factors", [0, 1, 3])
def test_kronecker_products(factors):
    logits = 3 * fill(2, factors, 2).astype(np.float32)
    h = p.kronecker_mixture(logits)
    want = np.ones((2, 1, 1))
    for k in range(factors):
        share = np.exp(logits[:, k]) / np.exp(logits[:, k]).sum(-1, keepdims=True)
        want = np.stack([np.kron(a, [s, s[::-1]]) for a, s in zip(want, share)])
    np.testing.assert_allclose(h, want, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_orthogonal_and_spectral_bounds(n):
    turn = np.asarray(jax.jit(partial(p.cayley, steps=0, alpha=0.7))(2 * fill(3, n, n).astype(np.float32)))
    np.testing.assert_allclose(turn @ np.swapaxes(turn, -1, -2), np.broadcast_to(np.eye(n), (3, n, n)), atol=2e-6)
    h = sphere(3 * fill(3, (n - 1) * (n - 2) + n - 1).astype(np.float32), n)
    np.testing.assert_allclose(h.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(h.sum(-2), 1, atol=1e-6)
    assert np.linalg.norm(h, 2, axis=(-2, -1)).max() < 1 + 1e-6


def test_cayley_steps_converge_to_the_exact_transform(x64):
    exact = p.cayley(LOGITS, steps=0)
    np.testing.assert_allclose(p.cayley(LOGITS, steps=40), exact, atol=1e-12)
    with pytest.raises(ValueError, match="at least 0 steps, got -1"):
        p.cayley(LOGITS, steps=-1)


def test_orthostochastic_squares_the_polar_factor(x64):
    u, _, v = np.linalg.svd(LOGITS)
    np.testing.assert_allclose(p.orthostochastic(LOGITS, coefficients=p.SCHEDULE), (u @ v) ** 2, atol=1e-3)


def test_identity_mix_moves_from_the_identity(x64):
    h = columns_then_rows(LOGITS, iters=10)
    for alpha in (0.0, 0.25, 1.0):
        np.testing.assert_allclose(p.identity_mix(h, jnp.array(alpha)), (1 - alpha) * np.eye(4) + alpha * h)


@pytest.mark.slow
@pytest.mark.parametrize("std", [1, 4, 10])
@pytest.mark.parametrize("n", [2, 4, 6])
def test_newton_finds_the_limit_of_sinkhorn(n, std, x64):
    logits = std * np.random.default_rng(0).standard_normal((200, n, n))
    h = newton(logits, iters=40)
    np.testing.assert_allclose(h.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(h.sum(-2), 1, atol=1e-9)
    # Scaling rows and columns keeps cross ratios: together with the sums this is the definition.
    z = logits - jnp.log(jnp.maximum(h, 1e-300))
    ratio = z[:, 1:, 1:] - z[:, 1:, :1] - z[:, :1, 1:] + z[:, :1, :1]
    np.testing.assert_allclose(ratio, 0, atol=1e-8)
    np.testing.assert_allclose(newton(logits.astype(np.float32)).sum(-2), 1, atol=5e-6)


def weighted(project, **options):
    weight = fill(4, 4)
    return jax.jit(lambda logits: jnp.sum(weight * project(logits, **options)))


@pytest.mark.parametrize("std", [1.0, *(pytest.param(std, marks=pytest.mark.slow) for std in (0.3, 2.0))])
def test_implicit_derivatives_equal_those_of_the_iterations(std, x64):
    logits = std * np.random.default_rng(1).standard_normal((4, 4))
    unrolled = weighted(sinkhorn.log_sinkhorn_columns_then_rows, iters=1000)
    want, curvature = jax.jit(lambda z: (jax.grad(unrolled)(z), jax.hessian(unrolled)(z)))(logits)
    for function in (weighted(sinkhorn.implicit_sinkhorn, iters=1000), weighted(p.newton_birkhoff)):
        derivatives = jax.jit(lambda z, f=function: (jax.grad(f)(z), jax.jacfwd(f)(z), jax.hessian(f)(z)))
        for got, expected, atol in zip(derivatives(logits), (want, want, curvature), (1e-10, 1e-10, 1e-8)):
            np.testing.assert_allclose(got, expected, atol=atol)


def test_implicit_derivatives_divide_by_the_temperature(x64):
    want = jax.grad(weighted(sinkhorn.log_sinkhorn_columns_then_rows, iters=1000, temperature=0.7))(LOGITS)
    got = jax.grad(weighted(sinkhorn.implicit_sinkhorn, iters=1000, temperature=0.7))(LOGITS)
    np.testing.assert_allclose(got, want, atol=1e-10)


@pytest.mark.slow
def test_implicit_derivatives_survive_float32_near_permutations():
    """What links the streams falls to 1e-40 and underflows, but no derivative may overflow."""
    of_newton, of_sinkhorn = (
        jax.jit(jax.jacrev(form)) for form in (newton, partial(sinkhorn.implicit_sinkhorn, iters=20))
    )
    for margin in (5.0, 10.0, 20.0, 40.0, 90.0):
        logits = margin * np.eye(4, dtype=np.float32) + np.asarray(LOGITS, np.float32)
        slope = of_newton(logits)
        with jax.enable_x64(True):
            np.testing.assert_allclose(slope, of_newton(logits.astype(np.float64)), atol=1e-6)
        early = of_sinkhorn(logits)
        assert np.isfinite(early).all()
        assert abs(early).max() < 0.1


def test_laplacian_solve(x64):
    weight = np.exp(np.random.default_rng(0).normal(0, 8, (5, 5)))
    weight = weight + weight.T
    x = np.random.default_rng(1).standard_normal(5)
    flow = weight * (x[:, None] - x[None, :])
    np.testing.assert_allclose(sinkhorn.solve_laplacian(weight, flow), x - x[0], rtol=1e-9)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least 1 iterations"):
        sinkhorn.sinkhorn_deepseek(LOGITS, iters=0)
    with pytest.raises(ValueError, match="at least 0 iterations, got -1"):
        sinkhorn.sinkhorn_clamped(LOGITS, iters=-1)
    with pytest.raises(ValueError, match="temperature must be positive"):
        sinkhorn.implicit_sinkhorn(LOGITS, iters=3, temperature=0.0)
    with pytest.raises(ValueError, match="at least 1 iterations, got 0"):
        p.newton_birkhoff(LOGITS, iters=0)


def test_no_clamped_iteration_leaves_the_logits():
    """As in the original, which then has no projection at all."""
    logits = LOGITS.astype(np.float32)
    np.testing.assert_array_equal(sinkhorn.sinkhorn_clamped(logits, iters=0), logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_near_identity_is_near_the_identity(kind, n):
    config = registry.get("projection", kind)()
    config.check(n)
    logits = config.near_identity(n, 4.0)
    assert logits.shape == config.shape(n)
    h = projection(config, n)(logits)
    np.testing.assert_allclose(h, np.eye(n), atol=0.1)
    # Copies of one stream must stay copies.
    np.testing.assert_allclose(h.sum(-1), 1, atol=3e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_called_the_identity_is_it(kind):
    """Sites leave mixing out then."""
    config = registry.get("projection", kind)()
    assert config.is_identity(1) or kind in ("clipped_sinkhorn", "deepseek_sinkhorn")  # their epsilons
    assert config.is_identity(4) == (kind == "identity")
    if config.is_identity(1):
        logits = 3 * np.random.default_rng(0).standard_normal((5, *config.shape(1))).astype(np.float32)
        np.testing.assert_allclose(np.broadcast_to(config.project(logits, 1), (5, 1, 1)), 1, rtol=1e-6)


def test_inexact_forms_are_not_called_the_identity():
    for inexact in (
        configs.SinkhornConfig(domain="exp", order="rows_then_columns"),
        configs.ClampedSinkhornConfig(iters=0),
        configs.ClippedSinkhornConfig(),
        configs.OrthostochasticConfig(normalise=False),
    ):
        assert not inexact.is_identity(1)


@pytest.mark.parametrize("kind", KINDS)
def test_projections_act_on_each_token_alone(kind):
    config = registry.get("projection", kind)()
    logits = np.random.default_rng(0).standard_normal((2, 3, *config.shape(4))).astype(np.float32)
    run = projection(config, 4)
    each = np.stack([[run(token) for token in row] for row in logits])
    np.testing.assert_allclose(np.broadcast_to(run(logits), each.shape), each, atol=1e-5)


def test_gradients_by_choice_are_the_same():
    slopes = {}
    for gradient in ("unrolled", "recompute", "implicit"):
        config = configs.SinkhornConfig(gradient=gradient, iters=60)
        slopes[gradient] = jax.grad(jax.jit(lambda z, config=config: jnp.sum(fill(4, 4) * config.project(z, 4))))(
            LOGITS
        )
    np.testing.assert_allclose(slopes["recompute"], slopes["unrolled"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(slopes["implicit"], slopes["unrolled"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "streams", "message"),
    [
        (configs.SinkhornConfig(iters=0), 4, "iters must be at least 1 in the domain 'log', got 0"),
        (configs.SinkhornConfig(temperature=0.0), 4, "temperature must be positive"),
        (configs.SinkhornConfig(domain="exp"), 4, "domain 'exp' has the order 'rows_then_columns' only"),
        (configs.SinkhornConfig(order="rows_then_columns", gradient="implicit"), 4, "use gradient 'unrolled'"),
        (configs.OrthostochasticConfig(coefficients=(1.0, 2.0)), 4, "coefficients must be three numbers"),
        (configs.CirculantConfig(gamma=0.0), 4, r"gamma must lie in \(0, 1\], got 0.0"),
        (configs.PermutationsConfig(), 7, "7 streams have 5040 permutations; at most 6"),
        (configs.KroneckerConfig(), 6, "streams must be a power of two for a product of pairs, got 6"),
    ],
)
def test_contradictions_are_refused(config, streams, message):
    with pytest.raises(ConfigError, match=message):
        StaticMHCConfig(streams=streams, projection=config).validate()


@pytest.mark.parametrize("form", [sinkhorn.log_sinkhorn_columns_then_rows, sinkhorn.log_sinkhorn])
def test_derivatives_are_those_of_iterations_that_have_not_converged(form, x64):
    check_grads(jax.jit(partial(form, iters=3, temperature=0.7)), (fill(2, 3, 3),), order=2, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", [sinkhorn.sinkhorn_deepseek, sinkhorn.sinkhorn_rows_then_columns])
def test_derivatives_know_the_epsilon(form, x64):
    """At the published 1e-6 no number shows it; at 0.3 the derivative without it is far off."""
    check_grads(partial(form, iters=3, eps=0.3), (fill(3, 3),), order=1, rtol=1e-6)
