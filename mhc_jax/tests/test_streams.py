"""How streams are read, mixed and written, and the coefficients with which they are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.ops import adapter, hyper, norm, streams
from mhc_jax.ops.streams import Streams
from mhc_jax.tests import test_projections

close = partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5)


def fill(*shape):
    return test_projections.fill(*shape).astype(np.float32)


def test_unit_rms_norm():
    x, gamma = fill(2, 3, 8), fill(8)
    want = x / np.linalg.norm(x, axis=-1, keepdims=True) * np.sqrt(8) * (1 + gamma)
    np.testing.assert_allclose(norm.unit_rms_norm(x, gamma), want, rtol=1e-5, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: norm.unit_rms_norm(x, jnp.ones(8)).sum())(jnp.zeros((2, 8)))).all()


def test_coefficients_of_one_stream_and_of_all():
    h, phi = fill(2, 3, 4, 5), fill(7, 20)
    held, flat = Streams.unstack(h), h.reshape(2, 3, 20)
    want = flat @ phi.T / np.sqrt((flat**2).mean(-1, keepdims=True) + 1e-3)
    close(hyper.flat_weights(held, phi, eps=1e-3), want)
    for act in (np.tanh, lambda x: x):
        want = fill(4, 3) + 0.1 * act(h @ fill(5, 3))
        close(hyper.dynamic_weights(held, fill(5, 3), 0.1, fill(4, 3), tanh=act is np.tanh), want)
    gamma = fill(5)
    got = hyper.dynamic_weights(held, fill(5, 3), 0.1, fill(4, 3), tanh=True, gamma_D=gamma)
    normed = Streams.unstack(norm.unit_rms_norm(h, gamma))
    close(got, hyper.dynamic_weights(normed, fill(5, 3), 0.1, fill(4, 3), tanh=True))


def test_gated_read():
    h, scale, down, up = fill(2, 3, 4, 5), fill(4, 5), fill(2, 20), fill(20, 2)
    x = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale)
    hidden = x.reshape(2, 3, 20) @ down.T / 4
    gate = 1 / (1 + np.exp(-(hidden / (1 + np.exp(-hidden))) @ up.T))
    read, normed = hyper.stream_gate(Streams.unstack(h), scale, down, up, eps=1e-6)
    close(normed.stack(), x)
    close(read, (gate.reshape(x.shape) * x).mean(-2))


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("lead", [(), (3,), (2, 1, 3)])
def test_streams_are_read_mixed_and_written_by_their_weights(lead, per_token):
    h, y, rows = fill(*lead, 4, 5), fill(*lead, 5), lead if per_token else ()
    weight, mixing, wider = fill(*rows, 4), fill(*rows, 4, 4), fill(*rows, 6, 4)
    held = Streams.unstack(h)
    close(streams.read(held, weight), np.einsum("...n,...nd->...d", weight, h))
    for matrix in (mixing, wider):
        close(streams.mix(held, matrix).stack(), np.einsum("...mn,...nd->...md", matrix, h))
    close(streams.write(y, weight).stack(), np.einsum("...n,...d->...nd", weight, y))
    close(streams.write(held, weight).stack(), np.einsum("...n,...nd->...nd", weight, h))


def test_streams_of_a_width_and_back():
    x = fill(2, 3, 12)
    for n in (1, 3, 4):
        held = streams.split_streams(x, n)
        assert (len(held), held.batch_shape) == (n, (2, 3))
        np.testing.assert_array_equal(held.stack(), x.reshape(2, 3, n, -1))
        np.testing.assert_array_equal(held.join(), x)
        np.testing.assert_array_equal(Streams.unstack(held.stack()).stack(), held.stack())


def test_fractions_of_streams_and_back():
    h = fill(2, 3, 4, 6)
    pieces = Streams.unstack(h).fractions(3)
    # Fraction f of stream s is piece f * 4 + s.
    want = np.moveaxis(h.reshape(2, 3, 4, 3, 2), 3, 2).reshape(2, 3, 12, 2)
    np.testing.assert_array_equal(pieces.stack(), want)
    np.testing.assert_array_equal(pieces.join_fractions(3).stack(), h)


def test_a_new_state_of_narrow_streams_is_rounded_once():
    """Sums are taken in the dtype of the coefficients, whatever that of the streams."""
    h, y = fill(2, 3, 4, 5).astype(jnp.bfloat16), fill(2, 3, 5).astype(jnp.bfloat16)
    mixing, weight = fill(4, 4), fill(4)
    held = Streams.unstack(h)
    for narrow in (streams.read(held, weight), streams.project(held, fill(7, 20)), *streams.mix(held, mixing).parts):
        assert narrow.dtype == jnp.float32
    exact = np.einsum("mn,...nd->...md", *(np.asarray(x, np.float64) for x in (mixing, h)))
    exact += np.einsum("n,...d->...nd", *(np.asarray(x, np.float64) for x in (weight, y)))
    after = (streams.mix(held, mixing) + streams.write(y, weight)).astype(held.dtype)
    np.testing.assert_array_equal(after.stack(), jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))


def test_adapters_share_all_but_their_gains():
    x, gamma, down, up = fill(2, 3, 4, 5), fill(4, 2), fill(5, 2), fill(2, 5)
    hidden = x @ down + 0.5
    want = (gamma * hidden / (1 + np.exp(-hidden))) @ up - 0.25
    parts = gamma, down, np.full(2, 0.5, np.float32), up, np.full(5, -0.25, np.float32)
    close(adapter.stream_adapter(Streams.unstack(x), *parts).stack(), want)
    shared = adapter.stream_adapter(x[..., 0, :], *parts)
    close(shared.stack(), adapter.stream_adapter(Streams.copies(x[..., 0, :], 4), *parts).stack())
