"""Names for the interchangeable parts: residual topologies, sequence mixers, stream ends, systems.

A part is registered once, under an axis and a name, and is found again by that name in
configuration files, checkpoints and error messages.
"""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])

AXES = (
    *("config", "data", "objective", "model", "topology", "original"),
    *("residual", "projection", "ends", "mixer", "channel", "norm", "rotary_scaling"),
)
_REGISTRY: dict[str, dict[str, Any]] = {}


def register(axis: str, name: str) -> Callable[[T], T]:
    """Decorator that files ``item`` under ``axis`` and ``name``.

    A class also receives ``kind = name``, the tag by which it is written to JSON.

    Raises:
        ValueError: no such axis, the name is already taken on it by another item, or a class has fields without being a
            dataclass.
    """
    if axis not in AXES:
        raise ValueError(unknown("axis", axis, AXES))

    def add(item: T) -> T:
        if isinstance(item, type):
            _check_fields(item)
        names = _REGISTRY.setdefault(axis, {})
        if name in names and names[name].__qualname__ != item.__qualname__:  # type: ignore[attr-defined]
            raise ValueError(f"{axis} {name!r} is already registered by {names[name].__module__}")
        names[name] = item
        if isinstance(item, type):
            item.kind = name  # type: ignore[attr-defined]
        return item

    return add


def _check_fields(part: type) -> None:
    """Raises ValueError if a subclass of a dataclass annotates fields of its own that its decorator would have made."""
    if dataclasses.is_dataclass(part) and "__dataclass_fields__" not in vars(part):
        hints = inspect.get_annotations(part)
        fields = [name for name, hint in hints.items() if "ClassVar" not in str(hint)]
        if fields:
            raise ValueError(
                f"{part.__module__}.{part.__qualname__} is no dataclass, so {listed(fields)} would be ignored; put "
                "@dataclasses.dataclass(frozen=True) between @register and the class"
            )


def get(axis: str, name: str) -> Any:
    """The item registered under ``axis`` and ``name``.

    Raises:
        KeyError: no such name; the message says which is nearest and lists some.
    """
    names = _REGISTRY.get(axis, {})
    if name not in names:
        raise KeyError(unknown(axis, name, names))
    return names[name]


def names(axis: str) -> list[str]:
    """All names registered on one axis, sorted."""
    return sorted(_REGISTRY.get(axis, {}))


class MissingMethodError(NotImplementedError):
    """A part that lacks a method of its contract."""


def required(method: Method) -> Method:
    """Decorator for a method, or the function of a class method, of a contract that every part must define.

    Raises:
        MissingMethodError: on a call, if the class of the part has none; the message names both.
    """

    @functools.wraps(method)
    def missing(self, *_: Any, **__: Any):
        cls = self if isinstance(self, type) else type(self)
        part = f"{cls.__module__}.{cls.__qualname__}"
        contract = f"{method.__module__}.{method.__qualname__}"
        raise MissingMethodError(f"{part} must define {method.__name__}; see {contract}")

    return missing  # pyright: ignore[reportReturnType]


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the candidate nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(str(word)[:100], list(candidates), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """The message about a name that is none of the ``known``: the nearest one, and some of the others."""
    known = sorted(known)
    return f"unknown {what} {shown(word)}{did_you_mean(word, known)}; known: {listed(known)}"


def listed(words: Iterable[Any], limit: int = 12) -> str:
    """The words with commas between, and how many more there are beyond ``limit``."""
    words = [str(word) for word in words]
    more = f" and {len(words) - limit:,} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def shown(value: Any, limit: int = 80) -> str:
    """``repr(value)``, cut to a length that a message can hold."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
