"""The kernel of chunks, interpreted: equal to the recurrence in float64, in a model to XLA's form, and sliced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import ConfigError
from mhc_jax.models import gated_deltanet, gla
from mhc_jax.nn.mixers import GatedDeltaConfig, GLAConfig
from mhc_jax.ops.delta_rule import gated_delta_rule
from mhc_jax.ops.gla import gated_linear_attention
from mhc_jax.tests.devices import run_on_devices

OPS = {"gla": gated_linear_attention, "delta": gated_delta_rule}


def draw(op, B, T, H, K, V):
    """Arguments by position with states last, and cotangents; gates of 0, of -1000, of -infinity and between."""
    rng = np.random.default_rng(0)
    q, k, gates = rng.standard_normal((3, B, T, H, K))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, dy = rng.standard_normal((2, B, T, H, V))
    s0, ds = rng.standard_normal((2, B, H, K, V))
    gates = -np.abs(gates) / 3
    gates[0, 1::9, 0], gates[0, 2::9], gates[-1, 3::11] = -1000, 0, -np.inf
    given = [q, k, v, gates]
    if op == "delta":
        given[3] = gates[..., 0]
        given.append(rng.uniform(0, 2, (B, T, H)))
    return [np.asarray(x, np.float32) for x in (*given, s0)], [np.asarray(x, np.float32) for x in (dy, ds)]


def results(op, arguments, cotangents, **options):
    """Output, last states, and the gradients of all arguments."""
    reset_BT = np.arange(arguments[0].shape[1]) % 23 == np.array([[7], [22]])[: len(arguments[0])]

    @jax.jit
    def run(arguments, cotangents):
        def recur(*arguments):
            *rest, s0 = arguments
            return OPS[op](*rest, s0_BHKV=s0, reset_BT=reset_BT, **options)

        found, pull = jax.vjp(recur, *arguments)
        return *found, *pull(tuple(cotangents))

    return run(arguments, cotangents)


def exact(op, arguments, cotangents):
    with jax.enable_x64():
        wide = ([jnp.asarray(x, np.float64) for x in arrays] for arrays in (arguments, cotangents))
        return [np.asarray(x) for x in results(op, *wide, form="recurrent")]


CASES = {  # T, H, K, V, chunk
    "last chunk not full": (37, 2, 8, 6, 16),
    **{
        "wide values": (33, 2, 4, 8, 32),
        "heads two by two, an odd number of them": (20, 5, 64, 64, 16),
        "one head fills its lanes": (20, 2, 128, 256, 16),
        "one chunk of an odd size": (9, 3, 8, 8, 5),
        "larger chunks": (70, 1, 8, 8, 64),
    },
}


@pytest.mark.parametrize(
    "case", [case if n == 0 else pytest.param(case, marks=pytest.mark.slow) for n, case in enumerate(CASES)]
)
@pytest.mark.parametrize("op", OPS)
def test_equals_the_recurrence_in_float64(op, case):
    T, H, K, V, chunk = CASES[case]
    arguments, cotangents = draw(op, 2, T, H, K, V)
    found = results(op, arguments, cotangents, chunk=chunk, implementation="pallas")
    for x, goal in zip(found, exact(op, arguments, cotangents), strict=True):
        assert x.shape == goal.shape
        assert np.abs(x - goal).max() < 1e-5 * np.abs(goal).max()
