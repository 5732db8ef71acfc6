"""Kernels of streams sliced over devices, each of which does its own rows and receives none."""

import pytest

from mhc_jax.tests.devices import run_on_devices

SLICED = """
import jax, jax.numpy as jnp, numpy as np, re
from jax.sharding import NamedSharding, PartitionSpec as P
from mhc_jax.kernels import streams as kernels
from mhc_jax.kernels.sinkhorn import log_sinkhorn
from mhc_jax.ops.hyper import flat_weights
from mhc_jax.ops.norm import rms_norm
from mhc_jax.ops.streams import Streams

WIDTH = 128
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
rows = NamedSharding(mesh, P(("data", "fsdp")))
rng = np.random.default_rng(0)

def projected(z, sharding=rows):
    return jnp.sum(log_sinkhorn(z, iters=3, order="columns_then_rows", batch_sharding=sharding) ** 2)


def compare(found, want, run, inputs):
    for x, goal in zip(found, want):
        np.testing.assert_allclose(x, goal, rtol=1e-5, atol=1e-5 * float(jnp.abs(goal).max()))
    assert not re.search("all-gather|all-to-all|collective-permute", run.lower(*inputs).compile().as_text())


z = jnp.asarray(rng.standard_normal((4, 40, 2, 2)), jnp.float32)
want, z = jax.jit(jax.grad(lambda z: projected(z, None)))(z), jax.device_put(z, rows)
run = jax.jit(jax.grad(projected))
compare([run(z)], [want], run, [z])

for tokens in ((), (4, 40)):
    def sites(h, y, pre, post, res, scale, phi, sharding=rows):
        norm = kernels.Normalised(rms_norm, (scale,), jnp.float32)
        u, mixed = kernels.read(Streams.unstack(h), pre, res, norm=norm, batch_sharding=sharding)
        h, weights = kernels.Pending(mixed, y, post).projected(project, phi)
        v, mixed = kernels.read(h, pre, res, batch_sharding=sharding)
        w, mixed = kernels.read(kernels.Pending(mixed, y, post), pre, res, norm=norm, batch_sharding=sharding)
        after = kernels.Pending(mixed, y, post).computed()
        return sum(jnp.sum(x**2) for x in (u, v, w, weights)) + jnp.sum(after.stack() ** 3)

    def project(h, phi):
        return flat_weights(h, phi, eps=1e-6)

    shapes = (4, 40, 2, WIDTH), (4, 40, WIDTH), (*tokens, 2), (*tokens, 2), (*tokens, 2, 2), (WIDTH,), (5, 2 * WIDTH)
    inputs = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    of = tuple(range(len(shapes)))
    want = jax.jit(jax.grad(lambda *xs: sites(*xs, sharding=None), of))(*inputs)
    inputs = [jax.device_put(x, rows if x.ndim > 2 else NamedSharding(mesh, P())) for x in inputs]
    run = jax.jit(jax.grad(sites, of))
    found = run(*inputs)
    assert found[0].addressable_shards[0].data.shape[0] == 1
    compare(found, want, run, inputs)
"""


@pytest.mark.slow
def test_devices_do_their_own_rows():
    run_on_devices(SLICED, 8)


SLICED_COEFFICIENTS = """
import jax, jax.numpy as jnp, numpy as np, re
from jax.sharding import NamedSharding, PartitionSpec as P
from mhc_jax.kernels import coefficients, streams
from mhc_jax.kernels.gates import Gates
from mhc_jax.ops.norm import rms_norm
from mhc_jax.ops.sinkhorn import ORDERS
from mhc_jax.ops.streams import Streams

N, WIDTH, K = 2, 128, 8
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
rows, whole = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P())
rng = np.random.default_rng(0)
gates = Gates(lambda z: [*map(jax.nn.sigmoid, z[: 2 * N]), *z[2 * N :]], N, 3, ORDERS["columns_then_rows"])


def of_read(h, ys, phi, scale, bias, gain, sharding):
    norm, state, found = streams.Normalised(rms_norm, (gain,), h[0].dtype), Streams(h), []
    for y in ys:
        options = {"eps": 1e-6, "batch_sharding": sharding}
        u, mixed, post = coefficients.read(state, phi, scale, bias, gates, norm, **options)
        state, found = streams.Pending(mixed, y, post), [*found, u]
    return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in (*found, *state.computed().parts))


def of_project(h, ys, phi, scale, bias, gain, sharding):
    h, numbers = coefficients.project(Streams(h), phi, scale, bias, gates, eps=1e-6, batch_sharding=sharding)
    return jnp.sum(numbers**2) + sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in h.parts)


for run, dtype, platform, off in (
    (of_read, jnp.float32, "cpu", 1e-5),
    (of_read, jnp.bfloat16, "gpu", 2**-8),  # sums in another order are now and then rounded the other way
    (of_project, jnp.bfloat16, "gpu", 1e-5),
):
    coefficients.target_backend = lambda: platform
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    wide = lambda: tuple(draw(4, 40, WIDTH).astype(dtype) for _ in range(2))
    inputs = wide(), wide(), draw(K, N * WIDTH), draw(K) / WIDTH**0.5, draw(K), draw(WIDTH)
    places = rows, rows, whole, whole, whole, whole
    of = tuple(range(len(inputs)))
    want = jax.jit(jax.grad(lambda *xs: run(*xs, None), of))(*inputs)
    inputs = jax.device_put(inputs, places)
    step = jax.jit(jax.grad(lambda *xs: run(*xs, rows), of))
    found = step(*inputs)
    assert found[0][0].addressable_shards[0].data.shape[0] == 1
    for x, goal in zip(jax.tree.leaves(found), jax.tree.leaves(want)):
        x, goal = (np.asarray(y, np.float32) for y in (x, goal))
        np.testing.assert_allclose(x, goal, rtol=10 * off, atol=off * float(np.abs(goal).max()) + 1e-12)
    assert not re.search("all-gather|all-to-all|collective-permute", step.lower(*inputs).compile().as_text())
"""


@pytest.mark.slow
def test_devices_do_the_coefficients_of_their_own_rows():
    run_on_devices(SLICED_COEFFICIENTS, 8)
