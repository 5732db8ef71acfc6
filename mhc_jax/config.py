"""Frozen, hashable configuration records that travel as JSON.

Every record derives from :class:`Config`. A record that is one choice among several (a residual
topology, a mixer, ...) belongs to an ``axis`` of the registry and is written with its ``"kind"``.
Records are usable as static arguments of ``jax.jit`` and as cache keys.
"""

import dataclasses
import json
import types
import typing
from typing import Any, ClassVar, Self

from mhc_jax import registry


class ConfigError(ValueError):
    """A configuration that contradicts itself or cannot be read. The message names fault and fix."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of all configuration records."""

    axis: ClassVar[str | None] = None
    kind: ClassVar[str | None] = None

    def validate(self) -> None:
        """Checks this record and, recursively, the records it holds.

        Subclasses extend it with their own checks and call ``super().validate()``.

        Raises:
            ConfigError: one clear message for the first contradiction found.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Config):
                value.validate()

    def require(self, condition: bool, fault: str) -> None:
        """Raises :class:`ConfigError` with ``fault``, prefixed by the record's name, unless ``condition``."""
        if not condition:
            raise ConfigError(f"{self.kind or type(self).__name__}: {fault}")

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
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
            ConfigError: an unknown kind or field, or a value of the wrong type; the message names the nearest.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"{cls.__name__}: expected a JSON object, got {data!r}")
        data = dict(data)
        kind = data.pop("kind", cls.kind)
        if cls.axis is not None and (kind is None or kind != cls.kind):
            if kind is None:
                raise ConfigError(f'{cls.__name__}: "kind" is missing; known: {", ".join(registry.names(cls.axis))}')
            try:
                found = registry.get(cls.axis, kind)
            except KeyError as error:
                raise ConfigError(error.args[0]) from None
            return found.from_dict(data)
        hints = typing.get_type_hints(cls)
        known = {field.name for field in dataclasses.fields(cls)}
        for name in data:
            if name not in known:
                raise ConfigError(f"{cls.__name__}: unknown field {name!r}{registry.did_you_mean(name, known)}")
        return cls(**{name: _parse(hints[name], value, f"{cls.__name__}.{name}") for name, value in data.items()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of :meth:`to_json`.

        Raises:
            ConfigError: text that is not JSON, or see :meth:`from_dict`.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{cls.__name__}: not valid JSON ({error})") from None
        return cls.from_dict(data)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _parse(hint: Any, value: Any, where: str) -> Any:
    """``value`` from JSON as the type that the field's annotation names."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [arg for arg in args if arg is not type(None)]
        return _parse(hint, value, where)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_parse(args[0], item, where) for item in value)
    if isinstance(hint, type) and issubclass(hint, Config):
        return hint.from_dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
