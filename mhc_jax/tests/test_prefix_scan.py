"""Prefix scans: one bracketing whatever the form, also where neither order nor brackets may be changed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhc_jax.ops.prefix_scan import Counter, prefixes
from mhc_jax.tests.own import slow_unless

FORMS = ("parallel", "blelloch", "sequential")


def compiled(function):
    """Its values do not depend on how well it is compiled."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def bracketing(count, combine, leaves):
    """The prefix of ``count`` leaves, from the binary digits of ``count``."""

    def tree(first, size):
        half = size // 2
        return leaves[first] if size == 1 else combine(tree(first, half), tree(first + half, half))

    sizes = [1 << level for level in reversed(range(count.bit_length())) if count >> level & 1]
    blocks = [tree(first, size) for first, size in zip(np.cumsum([0, *sizes]), sizes)]
    return functools.reduce(combine, blocks)


def written(older, newer):
    return f"({older}.{newer})"


def mixed(older, newer):
    """An integer for the expression ``(older.newer)``, another one for every other expression."""
    dtype = older.dtype.type
    high = older * dtype(0x9E3779B1) + newer * dtype(0x85EBCA77) + dtype(0x165667B1)
    return (high ^ (high >> dtype(15))) * dtype(0x2C1B3C6D) ^ (newer >> dtype(7))


def symbols(count):
    return np.arange(100, 100 + count, dtype=np.uint32)


def uneven(a, b):
    return jnp.tanh(1.3 * a - 0.7 * b) + 0.5 * a * b


def numbers(count):
    return np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)


def test_the_bracketing_is_that_of_the_paper():
    assert [bracketing(count, written, "01234567") for count in (1, 2, 3, 4, 5, 6, 7, 8)] == [
        "0", "(0.1)", "((0.1).2)", "((0.1).(2.3))", "(((0.1).(2.3)).4)", "(((0.1).(2.3)).(4.5))",
        "((((0.1).(2.3)).(4.5)).6)", "(((0.1).(2.3)).((4.5).(6.7)))",
    ]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "counts",
    [(1, 2, 3, 4, 7, 13, 16, 33), pytest.param(range(1, 34), marks=pytest.mark.slow)],
    ids=["some lengths", "every length"],
)
def test_every_length_has_this_bracketing(form, counts):
    with np.errstate(over="ignore"):
        expected = np.array([bracketing(i, mixed, symbols(33)) for i in range(1, 34)])
    found = compiled(lambda x: [prefixes(mixed, x[:count], form=form) for count in counts])(symbols(33))
    for count, x in zip(counts, found):
        np.testing.assert_array_equal(x, expected[:count])


@pytest.mark.slow
def test_associative_scan_of_jax_has_this_bracketing():
    """It promises nothing of operations that are not associative: this says when it changes."""
    counts = (1, 2, 3, 6, 7, 13, 19, 64, 100)
    x = symbols(100)
    one, other = (
        compiled(lambda x, scan=scan: [scan(mixed, x[:count]) for count in counts])(x)
        for scan in (prefixes, jax.lax.associative_scan)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def refolded(x):
    """A counter without folds: the occupied slots are folded anew for every prefix."""
    slots, found = {}, []
    for leaf in x:
        level = 0
        while level in slots:
            leaf, level = uneven(slots.pop(level), leaf), level + 1
        slots[level] = leaf
        found.append(functools.reduce(uneven, [slots[level] for level in sorted(slots, reverse=True)]))
    return jnp.stack(found)


def test_forms_agree_exactly_where_order_counts():
    with jax.enable_x64():
        x = numbers(13).astype(np.float64)
        expected = refolded(x)
        for found in compiled(lambda x: [prefixes(uneven, x, form=form) for form in FORMS])(x):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
        left = functools.reduce(uneven, x[:4])
        assert abs(expected[3] - left).max() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_matrices_are_multiplied_in_order(form):
    x = np.random.default_rng(0).standard_normal((11, 2, 2))
    products = np.stack([functools.reduce(np.matmul, x[: i + 1]) for i in range(11)])
    with jax.enable_x64():
        np.testing.assert_allclose(prefixes(jnp.matmul, x, form=form), products, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", slow_unless({5}, [1, 2, 3, 4, 5, 7, 8, 12, 13, 16]))
def test_gradients_agree(count):
    def weighted(x, form):
        return jnp.sum(prefixes(uneven, x, form=form) * jnp.cos(jnp.arange(float(count)))[:, None])

    with jax.enable_x64():
        x = numbers(count).astype(np.float64)
        grads = [jax.jit(jax.grad(weighted), static_argnums=1)(x, form) for form in FORMS]
        for found in grads[1:]:
            np.testing.assert_allclose(found, grads[0], rtol=1e-13, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_work(form):
    """Pairs that are combined; the classical sweep also combines blocks that are not complete."""
    counted = []

    def combine(a, b):
        jax.debug.callback(lambda: counted.append(len(a)))
        return mixed(a, b)

    for count, least in ((1, 0), (2, 1), (13, 19)):
        counted.clear()
        jax.block_until_ready(prefixes(combine, symbols(count), form=form))
        jax.effects_barrier()
        assert least <= sum(counted) <= least + (form == "blelloch") * count.bit_length()
        if form != "sequential":
            assert len(counted) <= 2 * count.bit_length()


def test_what_a_counter_holds():
    def push(counter, x):
        counter, prefix = counter.push(mixed, x[None], jnp.ones(1, bool))
        return counter, (counter.count_R[0], prefix[0])

    counter = Counter.empty(symbols(1), 128)
    assert len(counter.trees) == 7
    counter, (counts, found) = jax.jit(lambda x: jax.lax.scan(push, counter, x))(symbols(300))
    np.testing.assert_array_equal(counts[:100], np.arange(1, 101))
    held = [int(count).bit_count() for count in counts]
    assert max(held[:100]) == 6
    assert held[63] == 1
    with np.errstate(over="ignore"):
        expected = [bracketing(i, mixed, symbols(300)) for i in range(1, 301)]
    # Exact for twice as many elements as its trees hold; then the oldest tree takes in others.
    np.testing.assert_array_equal(found[:255], expected[:255])
    assert found[255] != expected[255]
    assert max(held) <= 7


def test_rows_of_a_counter_go_their_own_ways():
    random = np.random.default_rng(1)
    due_TR = random.random((40, 3)) < (0.9, 0.5, 0.2)
    first_TR = np.cumsum(due_TR, axis=0) - due_TR

    def push(counter, inputs):
        x_R, due_R = inputs
        return counter.push(mixed, x_R, due_R)

    start = Counter.empty(symbols(3), 64)
    x_TR = (100 + first_TR).astype(np.uint32)
    counter, found = jax.jit(lambda *inputs: jax.lax.scan(push, start, inputs))(x_TR, due_TR)
    with np.errstate(over="ignore"):
        for t, row in zip(*np.nonzero(due_TR)):
            assert found[t, row] == bracketing(int(first_TR[t, row]) + 1, mixed, symbols(40))
    np.testing.assert_array_equal(counter.count_R, due_TR.sum(0))


@pytest.mark.parametrize(
    ("form", "table"),
    [
        (
            "legacy_blelloch",
            "(0.e) ((0.1).e) (2.((0.1).e)) (((0.1).(2.3)).e) (4.(((0.1).(2.3)).e)) ((4.5).(((0.1).(2.3)).e)) "
            "(6.((4.5).(((0.1).(2.3)).e)))",
        ),
        (
            "legacy_parallel",
            "(e.0) (e.(0.1)) ((e.(0.1)).2) ((0.1).(2.3)) (((0.1).(2.3)).4) (4.5) 6",
        ),
    ],
)
def test_a_legacy_form_is_what_was_published(form, table):
    values = dict(zip("e0123456", [np.uint32(0), *symbols(7)]))

    def valued(text):
        if text in values:
            return values[text]
        depth, inside = 0, text[1:-1]
        for place, letter in enumerate(inside):
            depth += (letter == "(") - (letter == ")")
            if letter == "." and depth == 0:
                return mixed(valued(inside[:place]), valued(inside[place + 1 :]))
        raise AssertionError(text)

    with np.errstate(over="ignore"):
        expected = [valued(text) for text in table.split()]
    np.testing.assert_array_equal(prefixes(mixed, symbols(7), form=form), expected)
    with pytest.raises(ValueError, match="needs a power of two of chunks, not 7"):
        prefixes(mixed, symbols(6), form=form)


def test_an_unknown_form_is_named():
    with pytest.raises(ValueError, match="unknown form of the scan 'paralel'; did you mean 'parallel'"):
        prefixes(mixed, symbols(2), form="paralel")
