"""Memory traffic, communication and estimated time of a compiled program, read from its text.

XLA's own "bytes accessed" counts the body of a loop once, however often it runs, and some backends do not report it
at all. As in XLA's count, every kernel reads its operands and writes its results once; of an operand that it only
slices it reads the slices, and values inside a kernel cost nothing.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Self

_BITS = re.compile(r"\d+")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]")
_HEADER = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = (.+?) ([a-z][a-z\d-]*)\((.*)$")
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_PALLAS = 'custom_call_target="tpu_custom_call"'
_STATED = re.compile(r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"')
# An array that lies in tiles of these lengths of its last two axes.
_TILED = re.compile(r"\b([a-z]+\d\w*)\[([\d,]+)\]\{([\d,]+):T\((\d+),(\d+)\)")

# No kernels: names of existing arrays, or parts of a kernel that is counted elsewhere.
_FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "iota"}
_FREE |= {"partition-id", "replica-id"}
_ASYNC_ENDS = ("-done", "-update")
_SLICES = {"slice", "dynamic-slice", "gather"}
_CONTROL = {"while", "call", "conditional"}

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Bytes read and written, kernels started, and the cycles that the compiler estimates for them.

    The TPU compiler estimates everything except collectives and Pallas kernels, other compilers estimate nothing.

    Attributes:
        pallas: bytes that Pallas kernels of a TPU read and write, with what fills the last tiles, or as many as would
            take the time of their products, see :func:`cost`.
    """

    bytes: int = 0
    kernels: int = 0
    cycles: int = 0
    pallas: int = 0

    def __add__(self, other: Self) -> "Cost":
        return Cost(*(mine + its for mine, its in zip(dataclasses.astuple(self), dataclasses.astuple(other))))

    def __mul__(self, times: int) -> "Cost":
        return Cost(*(times * mine for mine in dataclasses.astuple(self)))

    def seconds(self, clock: float, bandwidth: float) -> float:
        """The estimated cycles at ``clock``, and Pallas kernels as if they moved bytes and nothing ever waited."""
        return self.cycles / clock + self.pallas / bandwidth


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Arrays that one kind of collective delivers to each device, and their bytes."""

    arrays: int = 0
    bytes: int = 0

    def __add__(self, other: Self) -> "Traffic":
        return Traffic(self.arrays + other.arrays, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Traffic":
        return Traffic(self.arrays * times, self.bytes * times)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    rest: str

    @functools.cached_property
    def size(self) -> int:
        """Bytes of its result."""
        return _size(self.shape)

    @property
    def called(self) -> list[str]:
        """Names of the computations it runs."""
        return _CALLED.findall(self.rest)


_Program = dict[str, dict[str, _Instruction]]


def cost(text: str, flops_a_byte: float = math.inf) -> Cost:
    """Cost of one run of the program ``compiled.as_text()``.

    Args:
        flops_a_byte: operations that the device does while it moves a byte. Pallas kernels that state more than that
            of each of theirs count with more bytes; by default no products count.
    """
    program, entry = _parse(text)
    return _computation(program, entry, flops_a_byte)


def loops(text: str, trips: int) -> list[Cost]:
    """Cost of one trip of each loop with that number of trips outside other such loops, in order."""
    program, entry = _parse(text)
    return [
        sum((_computation(program, name) for name in each.called), Cost()) for each in _outermost(program, entry, trips)
    ]


def collectives(text: str) -> dict[str, Traffic]:
    """Communication in one run of the program ``compiled.as_text()``, by kind of :data:`COLLECTIVES`.

    A collective in the body of a loop counts as often as the loop runs; an asynchronous one counts at its end.
    """
    program, entry = _parse(text)
    found: dict[str, Traffic] = {}
    for each, times in _runs(program, entry):
        kind = each.op.removesuffix("-done")
        if kind in COLLECTIVES:
            traffic = Traffic(len(_ARRAY.findall(each.shape)), each.size) * times
            found[kind] = found.get(kind, Traffic()) + traffic
    return found


def shapes(text: str) -> set[tuple[int, ...]]:
    """The shapes, on one device, of all arrays in the program ``compiled.as_text()``."""
    return {tuple(int(d) for d in dimensions.split(",") if d) for _, dimensions in _ARRAY.findall(text)}


def _parse(text: str) -> tuple[_Program, str]:
    """Computations by name, each with its instructions by name, in order; and the name of the entry computation."""
    program: _Program = {}
    entry = current = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = header[2]
            program[current] = {}
            entry = current if header[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            name, shape, op, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.-]+)", rest[: _closing(rest)]))
            program[current][name] = _Instruction(name, shape, op, operands, rest)
    return program, entry


def _closing(text: str) -> int:
    """The place in ``text`` where the parenthesis opened before it closes."""
    depth = 1
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return index
    return len(text)


def _size(shape: str) -> int:
    """Bytes of an array or a tuple of arrays."""

    def array(dtype: str, dimensions: str) -> int:
        bits = 8 if dtype == "pred" else int(_BITS.findall(dtype)[0])
        return math.ceil(bits * math.prod(int(d) for d in dimensions.split(",") if d) / 8)

    return sum(array(*found) for found in _ARRAY.findall(shape))


def _size_in_tiles(shape: str) -> int:
    """Bytes that an array or a tuple of arrays takes in a TPU's memory: heads of 64 fill lanes of 128."""

    def whole(found: re.Match[str]) -> str:
        sizes, order = ([int(x) for x in found[group].split(",")] for group in (2, 3))
        for axis, tile in zip(order, (int(found[5]), int(found[4]))):
            sizes[axis] = math.ceil(sizes[axis] / tile) * tile
        return f"{found[1]}[{','.join(map(str, sizes))}]"

    return _size(_TILED.sub(whole, shape))


def _runs(program: _Program, computation: str, times: int = 1) -> Iterator[tuple[_Instruction, int]]:
    """Every instruction that ``computation`` runs, including inside its calls, and the number of times.

    A collective that overlaps with other kernels appears in each of them; only the first one counts.
    """
    channels = set()
    for each in program[computation].values():
        yield each, times
        for name in () if each.op.endswith(_ASYNC_ENDS) else each.called:
            for one, often in _runs(program, name, times * _trips(program, each)):
                if each.op == "fusion" and (channel := _CHANNEL.search(one.rest)):
                    if channel[1] in channels:
                        continue
                    channels.add(channel[1])
                yield one, often


def _outermost(program: _Program, computation: str, trips: int) -> Iterator[_Instruction]:
    for each in program[computation].values():
        if each.op == "while" and _trips(program, each) == trips:
            yield each
        elif each.op in _CONTROL:
            for name in each.called:
                yield from _outermost(program, name, trips)


def _trips(program: _Program, each: _Instruction) -> int:
    """The number of times that an instruction runs its calls."""
    if each.op != "while":
        return 1
    if known := _TRIPS.search(each.rest):
        return int(known[1])
    # Some backends state the number only in the condition, which compares it with the counter.
    condition = program[_CONDITION.findall(each.rest)[0]]
    constants = [one.rest for one in condition.values() if one.op == "constant" and one.shape.startswith("s32[]")]
    return int(constants[0][: _closing(constants[0])]) if len(constants) == 1 else 1


def _computation(program: _Program, name: str, flops_a_byte: float = math.inf) -> Cost:
    return sum((_instruction(program, name, each, flops_a_byte) for each in program[name].values()), Cost())


def _instruction(program: _Program, computation: str, each: _Instruction, flops_a_byte: float) -> Cost:
    if each.op in _FREE or each.op.endswith(_ASYNC_ENDS):
        return Cost()
    if each.op in _CONTROL:
        return sum((_computation(program, name, flops_a_byte) for name in each.called), Cost()) * _trips(program, each)
    there = program[computation]
    sizes = [there[name].size if name in there else 0 for name in each.operands]
    fused = program[each.called[0]] if each.op == "fusion" else _alone(each, sizes)
    read = sum(_read(fused, index, size) for index, size in enumerate(sizes))
    estimate = _CYCLES.search(each.rest)
    moved = 0
    if _PALLAS in each.rest:
        operands = [there[name].shape for name in each.operands if name in there]
        moved = sum(map(_size_in_tiles, (*operands, each.shape)))
        if stated := _STATED.search(each.rest):  # what passes by a tile that stays is read again for each
            moved = max(moved, int(stated[2]), int(int(stated[1]) / flops_a_byte))
    return Cost(read + _written(fused, each.size), 1, int(estimate[1]) if estimate else 0, moved)


def _alone(each: _Instruction, sizes: list[int]) -> dict[str, _Instruction]:
    """A kernel of one instruction as a fusion of that instruction, with operands of these sizes."""
    parameters = [
        _Instruction(f"operand {index}", f"s8[{size}]", "parameter", (), f"{index})")
        for index, size in enumerate(sizes)
    ]
    names = tuple(parameter.name for parameter in parameters)
    return {one.name: one for one in (*parameters, dataclasses.replace(each, operands=names))}


def _read(fused: dict[str, _Instruction], index: int, size: int) -> int:
    """Bytes that a fusion reads of its parameter ``index``: all, or the slices if it uses only slices."""
    views = {each.name for each in fused.values() if each.op == "parameter" and each.rest.startswith(f"{index})")}
    read = 0
    for each in fused.values():
        if not views.intersection(each.operands):
            continue
        if each.op == "bitcast":
            views.add(each.name)
        elif each.op in _SLICES and each.operands[0] in views:
            read += each.size
        elif not (_in_place(each) and each.operands[0] in views):
            return size
    return min(read, size)


def _written(fused: dict[str, _Instruction], size: int) -> int:
    """Bytes that a fusion writes: its result, or only the update if it updates an array in place."""
    last = list(fused.values())[-1]
    while last.op == "bitcast" and last.operands[0] in fused:
        last = fused[last.operands[0]]
    return fused[last.operands[1]].size if _in_place(last) and last.operands[1] in fused else size


def _in_place(each: _Instruction) -> bool:
    return each.op == "dynamic-update-slice"
