"""Programs of tiles for a Mosaic kernel of GPUs: products on tensor cores, everything else element by element.

Tensor cores read a product's second factor, and a first one that is turned about, from shared memory. A program knows
which of its values have to go there and until when, and so shares few places among them. Values of arguments are
loaded where they are used: registers are few.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from mhc_jax.kernels.mosaic_gpu import only_states_a_sharding
from mhc_jax.kernels.tile_gpu import FACTOR

# Bytes of a row of the pieces in which a tile lies in shared memory.
SWIZZLE = 128


def tile(shape: Sequence[int], dtype: Any) -> Any:
    """Shared memory for a tile as tensor cores read it."""
    columns = SWIZZLE // jnp.dtype(dtype).itemsize
    return plgpu.SMEM(
        tuple(shape), dtype, transforms=(plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(SWIZZLE))
    )


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of tiles, and of rows of numbers, as a flat list of operations.

    Attributes:
        operations: each is used, and of those without arguments no two are the same.
        arguments, results: values; the first of each is the state.
        same: for values that are others, or others of 16 bits made wide, those others.
        places: a place in ``shapes`` for each value that goes to shared memory.
        constants: values without arguments that do; a place of theirs is not shared.
        shapes: those of the places, of 16 bits.
        homes: for results that are tiles the argument of the same shape and dtype whose place they may take when it has
            served; that of the state is for the state.
        late: results whose homes others have taken before, or that are there before their homes have served.
    """

    operations: list[Any]
    arguments: list[Var]
    results: list[Var]
    same: dict[Var, Var]
    places: dict[Var, int]
    constants: list[Var]
    shapes: list[tuple[int, ...]]
    homes: dict[int, int]
    late: list[int]

    @classmethod
    def of(cls, run: Callable[..., Any], *arguments: jax.ShapeDtypeStruct) -> "Program":
        """The program of ``run``."""
        traced = jax.make_jaxpr(run)(*arguments)
        jaxpr = jax.make_jaxpr(lambda *xs: _inlined(traced, xs))(*arguments).jaxpr
        assert len(set(jaxpr.outvars)) == len(jaxpr.outvars)  # each is given, by its number, once
        operations, same = _once(_with_products(_early(_used(jaxpr), jaxpr.outvars)), jaxpr.outvars)
        places = _places(operations, jaxpr.invars, same)
        return cls(operations, jaxpr.invars, jaxpr.outvars, same, *places, *_homes(operations, jaxpr, same))

    def begin(self, places: Sequence[Any]) -> None:
        """Stores the constants in their places, references to shared memory of :attr:`shapes`, for all runs."""
        known = {}
        for eqn in self.operations:
            if all(isinstance(x, Literal) or self.same.get(x, x) in known for x in eqn.invars):
                known[eqn.outvars[0]] = self._value(eqn, known)
        for x in self.constants:
            places[self.places[x]][...] = known[x]

    def __call__(self, values: Sequence[Any], places: Sequence[Any], give: Callable[[int, Any], None]) -> None:
        """Gives each result by its number, as an array, or a reference if it is an argument, and as soon as it may.

        Args:
            values: arrays, or references to shared memory.
            places: as given to :meth:`begin`.
            give: takes a number and a result, and may store a tile where its home is.
        """
        known = dict(zip(self.arguments, values, strict=True))
        stored = {x: places[self.places[x]] for x in self.constants}

        def factor(x, in_memory):
            x = self.same.get(x, x)
            if x in self.arguments or not (in_memory or x in self.constants):
                return known[x]
            if x not in stored:
                stored[x] = places[self.places[x]]
                stored[x][...] = known[x]
            return stored[x]

        def factors(a, b, of_a, of_b):
            a, b = factor(a, of_a == 0), factor(b, True)
            return a if of_a == 1 else _turned(a), b if of_b == 0 else _turned(b)

        numbers = {x: n for n, x in enumerate(self.results)}
        for x in self.arguments:
            if x in numbers:
                give(numbers[x], known[x])
        for eqn in self.operations:
            [out] = eqn.outvars
            if isinstance(eqn, _Products):
                known[out] = _multiplied([factors(*pair) for pair in eqn.pairs()], out.aval.shape)
            else:
                known[out] = self._value(eqn, known)
            if out in numbers and numbers[out] not in self.late:
                give(numbers[out], known[out])
        for n in self.late:
            give(n, known[self.results[n]])

    def _value(self, eqn, known):
        """Of an operation on each element."""
        operands = [self._array(x, known) for x in eqn.invars]
        if eqn.primitive.name == "add_any":
            return lax.add(*operands)
        found = eqn.primitive.bind(*operands, **eqn.params)
        return _laid(found) if eqn.primitive.name == "iota" else found

    def _array(self, x, known):
        if isinstance(x, Literal):
            return x.val
        found = known[self.same.get(x, x)]
        return (found if isinstance(found, jax.Array) else _laid(found[...])).astype(x.aval.dtype)


class _Products(NamedTuple):
    """An operation: the sum of products of two values, over one axis of each."""

    outvars: list[Var]
    invars: list[Var]
    axes: list[tuple[int, int]]

    def pairs(self) -> list[tuple[Var, Var, int, int]]:
        """The factors of each product, and their axes."""
        factors = zip(self.invars[::2], self.invars[1::2], strict=True)
        return [(*pair, *axes) for pair, axes in zip(factors, self.axes, strict=True)]


def _inlined(program: ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
    """Its results, without calls of other programs."""
    jaxpr = program.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *values), strict=True))
    for eqn in jaxpr.eqns:
        operands = [x.val if isinstance(x, Literal) else known[x] for x in eqn.invars]
        called = [x for x in eqn.params.values() if isinstance(x, ClosedJaxpr | Jaxpr)]
        if called:
            [called] = called
            found = _inlined(called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ()), operands)
        elif eqn.primitive.name == "stop_gradient" or only_states_a_sharding(eqn):
            found = operands
        else:
            found = eqn.primitive.bind(*operands, **eqn.params)
            found = found if eqn.primitive.multiple_results else [found]
        known.update(zip(eqn.outvars, found, strict=True))
    return [x.val if isinstance(x, Literal) else known[x] for x in jaxpr.outvars]


def _used(jaxpr):
    """Its operations without those that no result needs."""
    operations, used = [], {x for x in jaxpr.outvars if isinstance(x, Var)}
    for eqn in reversed(jaxpr.eqns):
        if used.intersection(eqn.outvars):
            operations.append(eqn)
            used.update(x for x in eqn.invars if isinstance(x, Var))
    return operations[::-1]


def _early(operations, results):
    """Results that are others made narrow at once, so that registers need not hold those."""
    narrow = [eqn for eqn in operations if eqn.primitive.name == "convert_element_type" and eqn.outvars[0] in results]
    others = [eqn for eqn in operations if all(eqn is not x for x in narrow)]
    made = {eqn.outvars[0] for eqn in others}
    found = [eqn for eqn in narrow if eqn.invars[0] not in made]
    for eqn in others:
        found += [eqn, *(x for x in narrow if x.invars[0] is eqn.outvars[0])]
    return found


def _with_products(operations):
    """The same with products as :class:`_Products`, one for the sum of two right before it."""
    found = {}
    for eqn in operations:
        [out] = eqn.outvars
        before = list(found.items())[-2:]
        if eqn.primitive.name == "dot_general":
            ((of_a,), (of_b,)), _ = eqn.params["dimension_numbers"]
            found[out] = _Products([out], eqn.invars, [(of_a, of_b)])
        elif eqn.primitive.name == "add" and [(x, _Products) for x in eqn.invars] == [(x, type(y)) for x, y in before]:
            first, second = (found.pop(x) for x in eqn.invars)
            found[out] = _Products([out], [*first.invars, *second.invars], [*first.axes, *second.axes])
        else:
            found[out] = eqn
    return list(found.values())


def _once(operations, results):
    """Those that make a new value, and what the values of the others are, see :class:`Program`."""
    kept, same, constants = [], {}, {}
    for eqn in operations:
        [out], operands = eqn.outvars, [x if isinstance(x, Literal) else same.get(x, x) for x in eqn.invars]
        if isinstance(eqn, _Products) or out in results:
            kept.append(eqn)
        elif eqn.primitive.name == "convert_element_type" and operands[0].aval.dtype == FACTOR:
            same[out] = operands[0]
        elif all(isinstance(x, Literal) or x in constants.values() for x in operands):
            which = str(eqn.primitive), str(eqn.params), *(str(x) if isinstance(x, Literal) else x for x in operands)
            if which in constants:
                same[out] = constants[which]
            else:
                constants[which] = out
                kept.append(eqn)
        else:
            kept.append(eqn)
    return kept, same


def _places(operations, arguments, same):
    """A place for each value that is a factor in shared memory, from its first product to its last."""
    uses, constant = collections.defaultdict(list), set()
    for n, eqn in enumerate(operations):
        operands = [same.get(x, x) for x in eqn.invars if isinstance(x, Var)]
        if constant.issuperset(operands):
            constant.update(eqn.outvars)
        elif isinstance(eqn, _Products):
            for a, b, of_a, _ in eqn.pairs():
                a, b = (same.get(x, x) for x in (a, b))
                for x in {b, a} if of_a == 0 or a in constant else {b}:
                    uses[x].append(n)
    places, shapes, last = {}, [], []
    for x, when in sorted(uses.items(), key=lambda use: use[1][0]):
        if x in arguments:
            continue
        free = (p for p, shape in enumerate(shapes) if shape == x.aval.shape and last[p] < when[0])
        place = len(shapes) if x in constant else next(free, len(shapes))
        if place == len(shapes):
            shapes.append(x.aval.shape)
            last.append(0)
        places[x], last[place] = place, len(operations) if x in constant else when[-1]
    return places, [x for x in places if x in constant], shapes


def _homes(operations, jaxpr, same):
    """Where results go, and which of them wait until all operations are done, see :class:`Program`."""
    arguments, made, served = jaxpr.invars, {}, dict.fromkeys(jaxpr.invars, -1)
    for when, eqn in enumerate(operations):
        made[eqn.outvars[0]] = when
        served.update((same.get(x, x), when) for x in eqn.invars if isinstance(x, Var) and same.get(x, x) in served)
    homes, late, taken = {}, [], {k for k, x in enumerate(arguments) if k > 0 and x in jaxpr.outvars}
    for n, x in sorted(enumerate(jaxpr.outvars), key=lambda result: made.get(result[1], -1)):
        if x in arguments or len(x.aval.shape) == 1:
            continue
        fitting = [k for k, y in enumerate(arguments) if (y.aval.shape, y.aval.dtype) == (x.aval.shape, x.aval.dtype)]
        fitting = [0] if n == 0 else [k for k in fitting if k > 0]
        assert fitting  # results are rounded as arguments of their shape are
        free = [k for k in fitting if k not in taken and served[arguments[k]] <= made[x]]
        if not free:
            late.append(n)
        homes[n] = (free or fitting)[0]
        taken.add(homes[n])
    return homes, late


def _laid(x):
    """As the tensor cores' results lie in registers."""
    return plgpu.layout_cast(x, plgpu.Layout.WGMMA)


def _turned(ref):
    return ref.T


def _multiplied(factors, shape):
    """The sum of the products of pairs of factors."""
    plgpu.commit_smem()

    def multiply(sums):
        for a, b in factors:
            plgpu.wgmma(sums, a, b)
        return sums[...]

    return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))
