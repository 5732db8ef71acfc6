"""How streams are read, mixed and written, and the coefficients with which they are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.ops import hyper, norm, streams
from mhc_jax.tests.test_projections import fill


def test_unit_rms_norm():
    x, gamma = fill(2, 3, 8), fill(8)
    want = x / np.linalg.norm(x, axis=-1, keepdims=True) * np.sqrt(8) * (1 + gamma)
    np.testing.assert_allclose(norm.unit_rms_norm(x, gamma), want, rtol=1e-5, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: norm.unit_rms_norm(x, jnp.ones(8)).sum())(jnp.zeros((2, 8)))).all()


def test_coefficients_of_one_stream_and_of_all():
    h, phi = fill(2, 3, 4, 5), fill(7, 20)
    flat = h.reshape(2, 3, 20)
    want = flat @ phi.T / np.sqrt((flat**2).mean(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(hyper.flat_weights(h, phi, eps=1e-3), want, rtol=2e-5, atol=1e-5)
    for act in (np.tanh, lambda x: x):
        want = fill(4, 3) + 0.1 * act(h @ fill(5, 3))
        got = hyper.dynamic_weights(h, fill(5, 3), 0.1, fill(4, 3), tanh=act is np.tanh)
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
    gamma = fill(5)
    got = hyper.dynamic_weights(h, fill(5, 3), 0.1, fill(4, 3), tanh=True, gamma_M=gamma)
    want = hyper.dynamic_weights(norm.unit_rms_norm(h, gamma), fill(5, 3), 0.1, fill(4, 3), tanh=True)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


def test_gated_read():
    h, scale, down, up = fill(2, 3, 4, 5), fill(4, 5), fill(2, 20), fill(20, 2)
    x = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale)
    hidden = x.reshape(2, 3, 20) @ down.T / 4
    gate = 1 / (1 + np.exp(-(hidden / (1 + np.exp(-hidden))) @ up.T))
    read, flat = hyper.stream_gate(h, scale, down, up, eps=1e-6)
    np.testing.assert_allclose(flat, x.reshape(2, 3, 20), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(read, (gate.reshape(x.shape) * x).mean(-2), rtol=2e-5, atol=1e-5)


def test_streams_are_summed_as_they_are_contracted(monkeypatch):
    """Each platform runs one of the two forms, so values and gradients of both are compared here."""
    h, y = fill(2, 3, 4, 5), fill(2, 3, 5)
    static, per_token = (fill(4), fill(6, 4)), (fill(2, 3, 4), fill(2, 3, 6, 4))

    def loss(h, y, weight, mixing):
        read, mixed = streams.read(h, weight), streams.mix(h, mixing)
        written = streams.write(y, weight, per_stream=False) + streams.write(h, weight, per_stream=True)
        return sum(jnp.sum(jnp.sin(out) * fill(*out.shape)) for out in (read, mixed, written))

    for coefficients in (static, per_token):
        results = []
        for contracts in (False, True):
            monkeypatch.setattr(streams, "_contracts", lambda contracts=contracts: contracts)
            results.append(jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(h, y, *coefficients))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)


@pytest.mark.parametrize("contracts", [False, True])
@pytest.mark.parametrize("lead", [(), (3,), (2, 1, 3)])
def test_streams_stand_before_the_width_whatever_comes_first(lead, contracts, monkeypatch):
    monkeypatch.setattr(streams, "_contracts", lambda: contracts)
    h, y, weight, mixing = fill(*lead, 4, 5), fill(*lead, 5), fill(*lead, 4), fill(*lead, 6, 4)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(streams.read(h, weight), np.einsum("...n,...nd->...d", weight, h))
    close(streams.mix(h, mixing), np.einsum("...mn,...nd->...md", mixing, h))
    close(streams.write(y, weight, per_stream=False), np.einsum("...n,...d->...nd", weight, y))
    close(streams.write(h, weight, per_stream=True), np.einsum("...n,...nd->...nd", weight, h))


def test_mix_may_change_the_number_of_streams():
    h, wide = fill(2, 3, 4, 5), fill(6, 4)
    np.testing.assert_allclose(streams.mix(h, wide), np.einsum("ij,btjd->btid", wide, h), rtol=1e-4, atol=1e-5)
