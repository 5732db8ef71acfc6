"""The losses of distillation against float64 formulas, their masks, and what they are no functions of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.ops import loss
from mhc_jax.tests.own import slow_unless

B, T, V = 2, 7, 11
RNG = np.random.default_rng(0)
TEACHER, STUDENT = (3 * RNG.standard_normal((B, T, V)) for _ in range(2))
TARGETS = RNG.integers(0, V, (B, T))
TARGETS[0, :3] = TARGETS[1, -1] = loss.IGNORE
COUNTED = TARGETS != loss.IGNORE


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(teacher, student, temperature):
    """T^2 KL(teacher || student) of every place, in float64."""
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_is_that_of_the_formula_at_places_that_count(temperature):
    total, count = loss.kl_divergence(jnp.float32(TEACHER), jnp.float32(STUDENT), TARGETS, temperature=temperature)
    expected = divergence(TEACHER, STUDENT, temperature)
    np.testing.assert_allclose(total, expected[COUNTED].sum(), rtol=1e-5)
    assert count == COUNTED.sum() == 10
    assert abs(expected.sum() - total) > 1  # the places that do not count would be seen


def test_a_student_like_its_teacher_has_no_divergence():
    same = jnp.float32(100 * TEACHER)
    for temperature in (0.1, 2.0):
        assert loss.kl_divergence(same, same, TARGETS, temperature=temperature)[0] == 0
    shifted = loss.kl_divergence(jnp.float32(TEACHER), jnp.float32(TEACHER + 5.0), TARGETS)[0]
    np.testing.assert_allclose(shifted, 0, atol=1e-5)


def test_a_high_temperature_compares_logits():
    """As it rises, the divergence times its square comes to half the variance of the difference of logits."""
    total, _ = loss.kl_divergence(jnp.float32(TEACHER), jnp.float32(STUDENT), TARGETS, temperature=1e3)
    np.testing.assert_allclose(total, (TEACHER - STUDENT).var(-1)[COUNTED].sum() / 2, rtol=2e-2)


def pieces():
    def drawn(*shape):
        return jnp.asarray(RNG.standard_normal(shape), jnp.float32)

    return drawn(B, T, 5), drawn(V, 5), drawn(B, T, 3), drawn(V, 3)


@pytest.mark.parametrize("chunk", slow_unless({3}, [1, 3, 64]))
def test_chunks_give_the_sums_and_gradients_of_whole_logits(chunk):
    hidden, head, teacher, teacher_head = pieces()

    def whole(hidden, head):
        logits, goal = hidden @ head.T, teacher @ teacher_head.T
        kl, _ = loss.kl_divergence(goal, logits, TARGETS, temperature=2.0)
        entropy, _ = loss.cross_entropy(logits, TARGETS)
        return 0.7 * kl + 0.2 * entropy, (kl, entropy)

    def chunked(hidden, head):
        options = {"temperature": 2.0, "chunk": chunk}
        total, kl, entropy, count = loss.chunked_distillation(
            hidden, head, teacher, teacher_head, TARGETS, 0.7, 0.2, **options
        )
        return total, (kl, entropy, count)

    (total, parts), gradients = jax.value_and_grad(whole, (0, 1), has_aux=True)(hidden, head)
    (found, (*sums, count)), others = jax.value_and_grad(chunked, (0, 1), has_aux=True)(hidden, head)
    np.testing.assert_allclose([found, *sums], [total, *parts], rtol=1e-5)
    assert count == 10
    for got, want in zip(others, gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(chunked(hidden, head)[0], total, rtol=1e-5)  # without differentiation, too


def test_teacher_weights_and_reported_parts_have_no_gradient():
    hidden, head, *teaching = pieces()

    def everything(teaching, weights, pick):
        found = loss.chunked_distillation(hidden, head, *teaching, TARGETS, *weights, chunk=3)
        return found[pick]

    for gradient in jax.tree.leaves(jax.grad(everything, (0, 1))(teaching, (0.7, 0.2), 0)):
        assert not np.asarray(gradient).any()
    for part in (1, 2):
        reported = jax.grad(
            lambda h, part=part: loss.chunked_distillation(h, head, *teaching, TARGETS, 1.0, 1.0, chunk=3)[part]
        )
        assert not np.asarray(reported(hidden)).any()


def test_the_distance_is_a_mean_over_width_and_a_sum_over_places_that_count():
    states, goals = RNG.standard_normal((2, B, T, 5))
    total, count = loss.state_distance(jnp.float32(states), jnp.float32(goals), TARGETS)
    np.testing.assert_allclose(total, ((states - goals) ** 2).mean(-1)[COUNTED].sum(), rtol=1e-5)
    assert count == 10


@pytest.mark.slow
def test_the_published_divergence_counts_every_place_and_grows_with_the_length():
    states, goals = RNG.standard_normal((2, 3, B, T, 5))
    arrays = [jnp.float32(x) for x in (STUDENT, TEACHER, states, goals)]
    total, kl, distance, entropy = loss.published_distillation(*arrays, TARGETS)
    np.testing.assert_allclose(kl, divergence(TEACHER, STUDENT, 2.0).sum() / B, rtol=1e-5)
    np.testing.assert_allclose(distance, ((states - goals) ** 2).mean(), rtol=1e-5)
    picked = np.take_along_axis(log_softmax(STUDENT), np.where(COUNTED, TARGETS, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(entropy, -picked[COUNTED].mean(), rtol=1e-5)
    np.testing.assert_allclose(total, kl + 0.5 * distance + 0.1 * entropy, rtol=1e-6)
    twice = [jnp.concatenate([x, x], axis=-2) for x in arrays]
    np.testing.assert_allclose(loss.published_distillation(*twice, np.tile(TARGETS, 2))[1], 2 * kl, rtol=1e-5)
