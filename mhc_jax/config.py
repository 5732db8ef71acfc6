"""Frozen, hashable configuration records that travel as JSON.

Every record derives from :class:`Config`. A record that is one choice among several (a residual
topology, a mixer, ...) belongs to an ``axis`` of the registry and is written with its ``"kind"``.
Records are usable as static arguments of ``jax.jit`` and as cache keys.
"""

import contextlib
import dataclasses
import functools
import inspect
import json
import numbers
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from mhc_jax import registry
from mhc_jax.registry import listed, shown

FLOAT32_MAX = 3.4028234663852886e38


class ConfigError(ValueError):
    """A configuration that contradicts itself or cannot be read. The message names fault and fix."""


class FieldError(ConfigError):
    """A fault in a record, which may lie inside another.

    Attributes:
        fault: the message without the record's name; mostly it begins with a field.
        fields: names of the record's fields.
        path: fields that lead from the outermost record to this one.
    """

    def __init__(self, record: str, fault: str, fields: Collection[str] = ()):
        super().__init__(f"{record}: {fault}")
        self.fault = fault
        self.fields = fields
        self.path: tuple[str, ...] = ()


class UnknownFieldError(FieldError):
    """A field that the record does not have.

    Attributes:
        name: name of the field.
        near: whether the message names one that the record has.
    """

    def __init__(self, record: str, name: str, fields: Collection[str]):
        nearest = registry.did_you_mean(name, fields)
        super().__init__(record, f"unknown field {shown(name)}{nearest}")
        self.name, self.near = str(name), bool(nearest)


class UnknownKindError(FieldError):
    """A kind that nothing has registered on its axis."""


@contextlib.contextmanager
def within(field: str) -> Iterator[None]:
    """Notes on a :class:`FieldError` raised inside that its record is held by ``field``."""
    try:
        yield
    except FieldError as error:
        error.path = (field, *error.path)
        raise


def read_json(file: str | Path) -> Any:
    """The contents of a JSON file in UTF-8.

    Raises:
        ConfigError: the file is not UTF-8 or not JSON; the message names it.
        OSError: the file cannot be read.
    """
    try:
        return parse_json(Path(file).read_bytes())
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; bytes are UTF-8.

    Raises:
        ConfigError: the text is not JSON, is nested too deeply, or holds an integer of thousands of digits.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise ConfigError("not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise ConfigError(f"not valid JSON ({str(error).split(';')[0]})") from None


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of all configuration records."""

    axis: ClassVar[str | None] = None
    kind: ClassVar[str | None] = None

    def validate(self) -> None:
        """Checks this record and, recursively, the records it holds.

        Values must have the annotated types, numbers must be finite and fit int64 or float32, and texts must be valid
        in file names. Subclasses add further checks and call ``super().validate()``.

        Raises:
            FieldError: one clear message for the first contradiction found.
        """
        hints = _hints(type(self))
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(value, Config):
                with within(name):
                    value.validate()
            must = _unlike(hints[name], value)
            self.require(must is None, f"{name} must {must}, got {shown(value)}")

    def require(self, condition: bool, fault: str) -> None:
        """Raises :class:`FieldError` with ``fault`` unless ``condition``."""
        if not condition:
            raise FieldError(self.kind or type(self).__name__, fault, _hints(type(self)))

    def require_counts(self, least: int, *fields: str) -> None:
        """Raises :class:`FieldError` unless these are at least ``least`` and fit 32 bits, as counters on devices do."""
        for field in fields:
            value = getattr(self, field)
            bound = "must not be negative" if least == 0 else f"must be at least {least}"
            self.require(value >= least, f"{field} {bound}, got {value}")
            self.require(value < 2**31, f"{field} must be below 2**31, got {value}")

    def require_not_negative(self, *fields: str) -> None:
        """Raises :class:`FieldError` unless these are at least 0."""
        for field in fields:
            self.require(getattr(self, field) >= 0, f"{field} must not be negative, got {getattr(self, field)}")

    def small(self) -> Self:
        """The same part at a size for tests, in a model of width 8; its defaults are often small enough."""
        return self

    def parts(self) -> Iterator["Config"]:
        """This record and, recursively, the records it holds."""
        yield self
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), Config):
                yield from value.parts()

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed.

        Raises:
            TypeError: a name is not a field of the record; the message suggests the nearest field.
        """
        check_changes(self.replace, type(self), changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-compatible dict; records on an axis carry their ``"kind"``."""
        out: dict[str, Any] = {"kind": self.kind} if self.kind else {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            out[field.name] = value.to_dict() if isinstance(value, Config) else _plain(value)
        return out

    def to_json(self) -> str:
        """The record as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises:
            FieldError: an unknown kind or field, or a value of the wrong type; the message names the nearest.
        """
        if not isinstance(data, dict):
            raise FieldError(cls.__name__, f"expected a JSON object, got {shown(data)}")
        data = dict(data)
        kind = data.pop("kind", cls.kind)
        if cls.axis is not None and (kind is None or kind != cls.kind):
            return _class_of_kind(cls, kind).from_dict(data)
        hints = _hints(cls)
        known = {field.name for field in dataclasses.fields(cls)}
        for name in data:
            if name not in known:
                raise UnknownFieldError(cls.__name__, name, known)
        return cls(**{name: _parse(cls, name, hints[name], value) for name, value in data.items()})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Inverse of :meth:`to_json`.

        Raises:
            ConfigError: text that is not JSON, or see :meth:`from_dict`.
        """
        try:
            data = parse_json(text)
        except ConfigError as error:
            raise ConfigError(f"{cls.__name__}: {error}") from None
        return cls.from_dict(data)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_changes(function: Callable[..., Any], record: type[Config], changes: Collection[str]) -> None:
    """Checks keywords of ``function`` that are to change fields of ``record``.

    Raises:
        TypeError: a name is not a field; the message suggests the nearest field or argument.
    """
    fields = {field.name for field in dataclasses.fields(record)}
    for name in changes:
        if name not in fields:
            near = registry.did_you_mean(name, sorted({*fields, *inspect.signature(function).parameters} - {"changes"}))
            raise TypeError(f"{function.__name__}() takes no {name!r}{near}")


def check_name(what: str, name: str, known: Collection[str]) -> None:
    """Raises ConfigError unless ``name`` is one of the ``known``; the message suggests the nearest."""
    if not isinstance(name, str) or name not in known:
        raise ConfigError(registry.unknown(what, name, known))


@functools.cache
def _hints(cls: type[Config]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _unlike(hint: Any, value: Any) -> str | None:
    """The requirement that ``value`` violates; None if it has the annotated type, or if JSON has no such type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        faults = [_unlike(arg, value) for arg in args if arg is not type(None) or value is None]
        return None if None in faults else faults[0]
    if origin is typing.Literal:
        found = any(type(value) is type(arg) and value == arg for arg in args)
        return None if found else f"be one of {listed(map(repr, args))}"
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return "be a list"
        return next((fault for item in value if (fault := _unlike(args[0], item))), None)
    if hint is bool:
        return None if isinstance(value, bool) else "be true or false"
    if hint is int:
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            return "be a whole number"
        return None if -(2**63) <= int(value) < 2**63 else "fit 64 bits"
    if hint is float:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return "be a number"
        size: Any = abs(value)
        if not size <= sys.float_info.max:
            return "be finite"
        return None if size <= FLOAT32_MAX else "fit float32, whose largest number is 3.4e38"
    if hint is str:
        return None if isinstance(value, str) and _is_text(value) else "be UTF-8 text without NUL"
    if isinstance(hint, type) and issubclass(hint, Config):
        return None if isinstance(value, hint) else f"be a {hint.__name__}"
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _class_of_kind(cls: type[Config], kind: Any) -> type[Config]:
    """The record of that kind on the axis of ``cls``."""
    assert cls.axis is not None
    if kind is None:
        raise FieldError(cls.__name__, f'"kind" is missing; known: {listed(registry.names(cls.axis))}')
    if not isinstance(kind, str):
        raise FieldError(cls.__name__, f'"kind" must be a name, got {shown(kind)}')
    try:
        return registry.get(cls.axis, kind)
    except KeyError as error:
        raise UnknownKindError(cls.__name__, error.args[0]) from None


def _parse(cls: type[Config], name: str, hint: Any, value: Any) -> Any:
    """``value`` from JSON as the type that the annotation of the field ``name`` names."""
    wanted = next((arg for arg in typing.get_args(hint) if arg is not type(None)), hint) if value is not None else hint
    if isinstance(wanted, type) and issubclass(wanted, Config):
        with within(name):
            return wanted.from_dict(value)
    if must := _unlike(hint, value):
        raise FieldError(cls.__name__, f"{name} must {must}, got {shown(value)}")
    return _converted(hint, value)


def _converted(hint: Any, value: Any) -> Any:
    """Lists become tuples, and whole numbers are taken where any number may stand."""
    if isinstance(value, list | tuple):
        return tuple(_converted(typing.get_args(hint)[0], item) for item in value)
    return float(value) if float in (hint, *typing.get_args(hint)) and value is not None else value
