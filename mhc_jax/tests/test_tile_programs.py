"""Programs of tiles, run on arrays for shared memory: no value is lost to another that takes its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.kernels import delta_rule, gla, tile_programs
from mhc_jax.kernels.tile_gpu import FACTOR, Tile
from mhc_jax.kernels.tile_programs import Program

C, K, V = 64, 128, 64


class Memory:
    """A reference to shared memory."""

    def __init__(self, array):
        self.array = np.array(array)

    def __getitem__(self, _):
        return jnp.asarray(self.array.copy())  # what is stored later must not be seen

    def __setitem__(self, _, x):
        assert (x.shape, x.dtype) == (self.array.shape, self.array.dtype)
        self.array[...] = np.asarray(x)


class Turned(Memory):
    """A reference to the transpose of what another one refers to."""

    def __init__(self, memory):
        self.array = memory.array.T


@pytest.fixture(autouse=True)
def on_arrays(monkeypatch):
    def multiplied(factors, shape):
        products = [jnp.asarray(a[...], jnp.float32) @ jnp.asarray(b[...], jnp.float32) for a, b in factors]
        assert all(b.dtype == FACTOR for pair in factors for b in map(jnp.asarray, (x[...] for x in pair)))
        assert products[0].shape == shape
        return sum(products)

    monkeypatch.setattr(tile_programs, "_laid", lambda x: x)
    monkeypatch.setattr(tile_programs, "_turned", Turned)
    monkeypatch.setattr(tile_programs, "_multiplied", multiplied)


def forward(op):
    def run(s, q, k, v, *gates):
        wide = (x.astype(jnp.float32) for x in (q, k, v))
        if op == "gla":
            s, y = gla.chunk(Tile(), s, *wide, *gates)
        else:
            s, y = delta_rule.chunk(Tile(), s, *wide, *([x] for x in gates))
        return s, y.astype(v.dtype)

    return run


def backward(op):
    def run(ds, s, dy, *inputs):
        _, pull = jax.vjp(forward(op), s, *inputs)
        return pull((ds, dy))

    return run


def draw(op, way):
    rng = np.random.default_rng(0)

    def array(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    inputs = [array(C, K, dtype=FACTOR), array(C, K, dtype=FACTOR) / 16, array(C, V, dtype=FACTOR)]
    inputs += [-abs(array(C, K))] if op == "gla" else [-abs(array(C)), jnp.full(C, 0.9)]
    return [array(V, K), *([array(V, K), array(C, V, dtype=FACTOR)] if way is backward else []), *inputs]


def run(program, given, places):
    """All results, of which tiles take the places that the program has for them."""
    values, found = [Memory(x) if x.ndim == 2 else x for x in given], {}

    def give(n, x):
        if n in program.homes:
            values[program.homes[n]][...] = x
        found[n] = jnp.array(x)

    program(values, places, give)
    return [x for _, x in sorted(found.items())]


@pytest.mark.parametrize("way", [forward, backward])
@pytest.mark.parametrize("op", ["gla", "delta"])
def test_a_program_is_the_function_it_is_made_from(op, way):
    """Twice: a second chunk finds the constants, and nothing else, where the first has left them."""
    step, given = way(op), draw(op, way)
    program = Program.of(step, *given)
    places = [Memory(jnp.full(shape, jnp.nan, FACTOR)) for shape in program.shapes]
    program.begin(places)
    fixed = {program.places[x] for x in program.constants}
    for scale in (1, 2):
        for n, place in enumerate(places):
            if n not in fixed:
                place[...] = jnp.full_like(place[...], jnp.nan)
        scaled = [x / scale for x in given]
        for x, goal in zip(run(program, scaled, places), step(*scaled), strict=True):
            assert x.dtype == goal.dtype
            x, goal = np.float32(x), np.float32(goal)
            np.testing.assert_allclose(x, goal, rtol=2e-2, atol=1e-3 * abs(goal).max())


def test_an_argument_that_is_a_result_is_given_before_its_place_is_taken():
    program = Program.of(lambda s, x: (s + x, s), *[jax.ShapeDtypeStruct((C, K), jnp.float32)] * 2)
    s, x, found = Memory(jnp.ones((C, K))), Memory(jnp.ones((C, K))), []

    def give(n, value):
        found.append((n, float(value[...][0, 0])))
        if n == 0:
            s[...] = value

    program([s, x], [], give)
    assert found == [(1, 1.0), (0, 2.0)]


def test_places_are_few():
    """They would not fit a processor's shared memory if every factor had its own."""
    program = Program.of(backward("gla"), *draw("gla", backward))
    assert len(program.shapes) - len(program.constants) < 8 < len(program.places) - len(program.constants)
