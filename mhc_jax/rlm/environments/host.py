"""What stands on the host's side of a boundary: bounded output, calls of host functions, names that are reserved."""

import inspect
import json
import keyword
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mhc_jax.rlm import prelude
from mhc_jax.rlm.environments.base import Cell, ToolError

# Characters, elements, nesting and bits of what code may hand to a function of the host.
MAX_CHARS = 1 << 24
MAX_ITEMS = 1 << 17
MAX_NESTING = 8
MAX_BITS = 1 << 10
# Bytes of a message from a sandbox.
MAX_BYTES = 4 * MAX_CHARS
# Characters and elements of a variable that the host gives.
MAX_BOUND = 1 << 32
# Characters of a cell's code, and of an error.
MAX_CODE = 1 << 18
MAX_ERROR = 4000
# Names that one cell adds to the variables that are listed.
MAX_NAMES = 1000
# Calls of the host in one cell.
MAX_CALLS = 2000

# Where a line of code may give names a value, in any scope.
_ASSIGNED = re.compile(
    r"^[ \t]*(?:(?:async[ \t]+)?(?:def|class)[ \t]+(?P<made>\w+)"
    r"|(?:async[ \t]+)?for[ \t]+(?P<each>[\w(][\w, \t()]*?)[ \t]in\b"
    r"|(?P<targets>\w+(?:[ \t]*[,=][ \t]*\w+)*)[ \t]*(?::[^=\n]*)?[-+*/|&]?=(?!=))"
    r"|\bas[ \t]+(?P<alias>\w+)|\b(?P<walrus>\w+)[ \t]*:=",
    re.MULTILINE,
)


# A text in JSON, up to the end if none closes it.
_TEXT = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class Ended(BaseException):
    """The end of a cell that a host function asks for; not an Exception, so that ``except Exception`` lets it pass."""


class Output:
    """The text that a cell prints: of more than ``limit`` characters, that many of its head and its tail together."""

    def __init__(self, limit: int):
        self._head, self._room = [], limit - limit // 2
        self._tail, self._held, self._limit = deque(), 0, limit // 2
        self._dropped = 0

    def write(self, text: str) -> None:
        """Appends."""
        head, text = text[: self._room], text[self._room :]
        self._room -= len(head)
        if head:
            self._head.append(head)
        if text:
            self._tail.append(text)
            self._held += len(text)
        while self._held > self._limit:
            first = self._tail.popleft()
            kept = first[min(len(first), self._held - self._limit) :]
            self._held -= len(first) - len(kept)
            self._dropped += len(first) - len(kept)
            if kept:
                self._tail.appendleft(kept)

    def text(self) -> str:
        """Head and tail, with a line between them that counts what is missing."""
        gap = [f"\n[{self._dropped} characters left out]\n"] if self._dropped else []
        return "".join([*self._head, *gap, *self._tail])


def plain(value: Any, chars: int = MAX_CHARS, items: int = MAX_ITEMS) -> Any:
    """``value`` if it is made of texts, numbers, lists, tuples and dictionaries within bounds.

    Nothing is formatted or compared, because lists that hold each other take for ever then.

    Raises:
        ToolError: it is not.
    """
    left = [(value, 0)]
    while left:
        one, depth = left.pop()
        kind, items = type(one), items - 1
        if kind is str:
            chars -= len(one)
            _check_text(one)
        elif kind in (list, tuple, dict):
            if depth == MAX_NESTING or len(one) > items:
                raise ToolError("a list or dictionary is too large or nested too deeply")
            parts = [part for pair in one.items() for part in pair] if kind is dict else one
            left.extend((part, depth + 1) for part in parts)
        elif kind is int and one.bit_length() > MAX_BITS:
            raise ToolError("a number is too large")
        elif kind not in (int, float, bool, type(None)):
            raise ToolError("only texts, numbers, lists and dictionaries are passed; convert with str()")
        if chars < 0 or items < 0:
            raise ToolError("too many characters or elements")
    return value


def arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments of a call, from JSON that code has written: of as many elements as are passed.

    Raises:
        ToolError: it holds none, or too many.
    """
    marks = sum(map(text.count, ",[{"))
    if marks > MAX_ITEMS and sum(map(_TEXT.sub("", text).count, ",[{")) > MAX_ITEMS:
        raise ToolError("a list or dictionary is too large")
    try:
        args, kwargs = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        args = kwargs = None
    if type(args) is not list or type(kwargs) is not dict:
        raise ToolError("that is no call of a function")
    return args, kwargs


class Calls:
    """The functions of the host as code in a sandbox may call them, and what they have to tell the host.

    Attributes:
        names: every reserved name that is a function of the host.
        answer: the final answer of the present cell.
        fault: what a function raised that is no Exception, for the host.
        total: calls since the environment last set it to 0.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]]):
        check_names(functions)
        self._functions = {**functions, "_submit": self._submit}
        self.names = tuple(self._functions)
        self.total = 0
        self.begin()

    def begin(self) -> None:
        """Forgets the cell before."""
        self.answer: str | None = None
        self.fault: BaseException | None = None
        self._count = 0

    def cell(self, output: "Output", error: str | None, answer: str | None) -> Cell:
        """What the present cell did; raises what is for the host.

        An answer that a function took counts, whatever the code did after it.
        """
        if self.fault:
            raise self.fault
        if self.answer is not None:
            return Cell(output.text(), None, self.answer)
        return Cell(output.text(), error, answer)

    def call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of a function.

        Raises:
            ToolError: it failed, or the arguments are not those of the function; its message is for the code.
            Ended: the cell is over.
        """
        if self.fault or self._count >= MAX_CALLS:
            raise Ended(f"more than {MAX_CALLS} calls of the host in one cell")
        self._count += 1
        self.total += 1
        function = self._functions.get(name)
        if function is None:
            raise ToolError(f"the host has no function {name[:80]!r}")
        plain([args, kwargs])
        _check_arguments(name, function, args, kwargs)
        try:
            result = function(*args, **kwargs)
        except (ToolError, Ended):
            raise
        except Exception as error:
            raise ToolError(f"{name} failed: {type(error).__name__}") from None
        except BaseException as error:
            self.fault = error
            raise Ended("stopped by the host") from None
        try:
            return plain(result)
        except ToolError as error:
            raise ToolError(f"{name} returned what cannot be passed in: {error}") from None

    def _submit(self, text: str) -> None:
        """The first answer of a cell counts: code that catches the end of its cell goes on for nothing."""
        if type(text) is not str:
            raise ToolError("the answer must be a text")
        self.answer = text if self.answer is None else self.answer
        raise Ended("answered")


def _check_arguments(name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises ToolError for arguments that are not those of the function."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a builtin
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ToolError(f"{name}(): {error}") from None


def check_names(names: Mapping[str, Any]) -> None:
    """Raises ValueError for what cannot be a variable, or is one of the prelude."""
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            raise ValueError(f"{name!r} cannot be the name of a variable")
        if name in prelude.NAMES:
            raise ValueError(f"the name {name!r} is taken: {', '.join(prelude.NAMES)}")


def check_data(names: Mapping[str, Any]) -> None:
    """Raises TypeError for a variable that is no data."""
    for name, value in names.items():
        try:
            plain(value, MAX_BOUND, MAX_BOUND)
        except ToolError as error:
            raise TypeError(f"the variable {name} must be text, a number, or a list or dictionary: {error}") from None


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ToolError("a text with half a surrogate pair") from None


def assigned(code: str) -> set[str]:
    """Names that may have a value after ``code``, at most 1000, by a look at its lines: nothing is parsed here."""
    found = (part for match in _ASSIGNED.finditer(code) for part in match.groups() if part)
    names = {name for part in found for name in re.findall(r"\w+", part)}
    fit = sorted(name for name in names if name.isidentifier() and not keyword.iskeyword(name) and name[0] != "_")
    return set(fit[:MAX_NAMES])


def too_long(code: str) -> str | None:
    """The fault of code that is not even looked at."""
    return f"the code has {len(code)} characters; at most {MAX_CODE} are run" if len(code) > MAX_CODE else None


def shown(value: Any) -> str:
    """A last bare expression as a line of output; empty for None. What is no plain data is formatted inside alone."""
    try:
        return "" if value is None else f"{value if type(value) is str else repr(plain(value))}\n"
    except ToolError:
        return "[The last value is not shown; print(...) shows it.]\n"
