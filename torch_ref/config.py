"""Configurations as plain attributes, and the classes that their ``"kind"`` tags name.

A configuration is any object with the fields of ``mhc_jax``'s records (duck-typed: nothing is
imported from there), or the JSON dict that such a record writes.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])

_KINDS: dict[str, dict[str, type]] = {}


class MissingField(AttributeError, ValueError):
    """A configuration dict lacks a field."""


class Record:
    """Attribute access to a configuration dict, recursively; every field must be present."""

    def __init__(self, fields: dict[str, Any]):
        self.__dict__.update({name: as_record(value) for name, value in fields.items()})

    def __getattr__(self, name: str) -> Any:
        kind = self.__dict__.get("kind", "configuration")
        raise MissingField(f"{kind}: field {name!r} is missing; it has {', '.join(sorted(self.__dict__)) or 'none'}")


def as_record(config: Any) -> Any:
    """Dicts become :class:`Record`; everything else passes through."""
    return Record(config) if isinstance(config, dict) else config


def register(axis: str, kind: str) -> Callable[[type], type]:
    """Class decorator: the class that implements ``kind`` on ``axis``."""

    def add(cls: type) -> type:
        _KINDS.setdefault(axis, {})[kind] = cls
        return cls

    return add


def implementation(axis: str, config: Any) -> type:
    """The class registered for ``config.kind``.

    Raises:
        ValueError: an unknown or missing kind.
    """
    known = _KINDS[axis]
    return known[one_of(f"{axis} kind", getattr(config, "kind", None), known)]


def required(method: Method) -> Method:
    """Decorator for a method that every part must define; without it a call raises an error that names both."""

    @functools.wraps(method)
    def missing(self, *_: Any, **__: Any):
        part = f"{type(self).__module__}.{type(self).__qualname__}"
        contract = f"{method.__module__}.{method.__qualname__}"
        raise NotImplementedError(f"{part} must define {method.__name__}; see {contract}")

    return missing  # pyright: ignore[reportReturnType]


def one_of(what: str, value: Any, known: Iterable[str]) -> Any:
    """``value``, or a ValueError that names the known ones."""
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(sorted(known))}")
    return value
