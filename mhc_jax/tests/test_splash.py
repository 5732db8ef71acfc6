"""Splash attention, interpreted: equal to the plain form within its dtype's rounding, and sliced over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax import ConfigError
from mhc_jax.backend import compiling_for
from mhc_jax.ops.attention import causal_attention
from mhc_jax.tests.devices import run_on_devices
from mhc_jax.tests.own import slow_unless

# Relative to the largest entry. Both sum in float32; in bfloat16 queries, probabilities and outputs are rounded to it.
ROUNDING = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}


def case(T, G, dtype, segments):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, T, heads, 16)), dtype) for heads in (4, G, G))
    ids = jnp.asarray(np.sort(rng.integers(-1, 2, (2, T)), axis=1)) if segments else None
    return (q, k, v), ids, rng.standard_normal((2, T, 4, 16))


@pytest.mark.parametrize("dtype", slow_unless([jnp.float32], ROUNDING))
@pytest.mark.parametrize(
    ("T", "G", "causal", "segments"),
    [
        pytest.param(128, 4, True, False, marks=pytest.mark.slow),
        (130, 2, True, True),
        *(pytest.param(130, 2, False, segments, marks=pytest.mark.slow) for segments in (False, True)),
    ],
)
def test_equals_the_plain_form(T, G, causal, segments, dtype):
    qkv, ids, weight = case(T, G, dtype, segments)

    def run(implementation, dtype):
        def attend(*qkv):
            y = causal_attention(*qkv, causal=causal, segment_ids=ids, implementation=implementation)
            return jnp.sum(weight * y.astype(jnp.float32)), y

        found = jax.jit(jax.grad(attend, (0, 1, 2), has_aux=True))(*(x.astype(dtype) for x in qkv))
        return jax.tree.leaves(found)

    for found, want in zip(run("splash", dtype), run("xla", jnp.float32), strict=True):
        assert found.dtype == dtype
        far = jnp.abs(found.astype(jnp.float32) - want).max() / jnp.abs(want).max()
        assert far < ROUNDING[dtype]


def test_values_of_another_width_and_another_scale():
    (q, k, v), _, weight = case(130, 4, jnp.float32, False)

    def run(implementation):
        def attend(q, k, v):
            return jnp.sum(weight[..., :6] * causal_attention(q, k, v, scale=0.7, implementation=implementation))

        return jax.jit(jax.value_and_grad(attend, (0, 1, 2)))(q, k, v[..., :6])

    for found, want in zip(*map(jax.tree.leaves, map(run, ("splash", "xla"))), strict=True):
        assert jnp.abs(found - want).max() < 1e-5 * jnp.abs(want).max()


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
@pytest.mark.parametrize("segments", [False, True])
def test_nothing_to_attend_to(shape, segments):
    q, k = jnp.zeros((*shape, 4, 16), jnp.bfloat16), jnp.zeros((*shape, 2, 16), jnp.bfloat16)
    ids = jnp.zeros(shape, jnp.int32) if segments else None
    found, want = (causal_attention(q, k, k, segment_ids=ids, implementation=kind) for kind in ("splash", "xla"))
    assert (found.shape, found.dtype) == (want.shape, want.dtype)


def test_what_it_cannot_do_is_refused():
    (q, k, v), *_ = case(128, 4, jnp.float16, False)
    with pytest.raises(ValueError, match="float32 or bfloat16, not float16; use 'xla'"):
        causal_attention(q, k, v, implementation="splash")
    with pytest.raises(ValueError, match="splash takes none of start, start_B and keep_BHTS"):
        causal_attention(q, k, v, start=0, implementation="splash")
    with compiling_for("gpu"), pytest.raises(ConfigError, match="this kernel is for TPUs; take .* 'xla' on a GPU, or"):
        causal_attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)), implementation="splash")


SLICED = """
import jax, jax.numpy as jnp, numpy as np, re
from jax.sharding import NamedSharding, PartitionSpec as P
from mhc_jax.ops.attention import causal_attention
from mhc_jax.tests.own import slow_unless
mesh = jax.make_mesh((2, 2), ("rows", "heads"))
rows = NamedSharding(mesh, P("rows"))
rng = np.random.default_rng(0)
for G, sliced in ((2, P("rows", None, "heads")), (1, P("rows"))):
    q, k, v = (jnp.asarray(rng.standard_normal((4, 128, heads, 8)), jnp.float32) for heads in (2, G, G))
    want = causal_attention(q, k, v)
    attend = jax.jit(lambda q, k, v: causal_attention(q, k, v, implementation="splash", batch_sharding=rows))
    inputs = [jax.device_put(x, NamedSharding(mesh, sliced)) for x in (q, k, v)]
    found = attend(*inputs)
    assert found.sharding.spec[:1] == ("rows",), found.sharding
    assert found.addressable_shards[0].data.shape[:1] == (2,)
    assert found.addressable_shards[0].data.shape[2] == (1 if G == 2 else 2)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    assert not re.search("all-gather|all-to-all|collective-permute", attend.lower(*inputs).compile().as_text())
"""


@pytest.mark.slow
def test_devices_attend_to_their_own_rows_and_heads():
    """Where one head of keys cannot be sliced, every device has all heads of its rows."""
    run_on_devices(SLICED, 4)
