"""The fields of a published code base's configuration: inferred, free and fixed ones."""

import numbers
import sys
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from mhc_jax.interop.keys import InteropError
from mhc_jax.registry import did_you_mean, shown


def settle(
    system: str,
    hints: Mapping[str, Any],
    *,
    told: Mapping[str, Any],
    free: Mapping[str, Any],
    fixed: Mapping[str, Any] | None = None,
    unread: Collection[str] = (),
) -> dict[str, Any]:
    """The values of the free fields.

    Args:
        system: names the code base in messages.
        hints: given by the caller or stored in a checkpoint.
        told: fields inferred from the tensors, which no hint may contradict.
        free: fields that the tensors do not show, with the code base's defaults.
        fixed: the one value that the model here can have.
        unread: fields that change nothing.

    Raises:
        InteropError: an unknown hint, one of the wrong type, one that contradicts the tensors, or one that the model
            here cannot follow.
    """
    fixed = fixed or {}
    known = {*told, *free, *fixed, *unread}
    for name, value in hints.items():
        if name not in known:
            raise InteropError(f"{system}: unknown hint {shown(name)}{did_you_mean(name, known)}")
        if name in told and not _same(value, told[name]):
            raise InteropError(f"{system}: {name}={shown(value)} contradicts the tensors, which say {told[name]!r}")
        if name in fixed and not _same(value, fixed[name]):
            raise InteropError(f"{system}: {name}={shown(value)} is not supported, only {fixed[name]!r} is")
    return {
        name: _like(default, hints[name], f"{system}: {name}") if name in hints else default
        for name, default in free.items()
    }


def fields(system: str, name: str, record: Any) -> Mapping[str, Any]:
    """The configuration that a checkpoint stores next to its tensors; empty if it stores none.

    Raises:
        InteropError: it is no dict.
    """
    if record is None:
        return {}
    if not isinstance(record, Mapping) or not all(isinstance(key, str) for key in record):
        kind = type(record).__name__
        raise InteropError(f"{system}: {name} of the checkpoint must be a dict of fields, e.g. vars(...), not {kind}")
    return record


def _same(value: Any, known: Any) -> bool:
    """Equal, where True is not 1 and an array is no number."""
    equal = value == known
    return isinstance(value, bool) == isinstance(known, bool) and isinstance(equal, bool | np.bool_) and bool(equal)


def _like(default: Any, value: Any, what: str) -> Any:
    """``value`` as the type of ``default``; a default of None stands for an integer that may be missing."""
    expected, right, convert = _TYPES[type(default)]
    if value is None and default is None:
        return None
    if right(value):
        return convert(value)
    raise InteropError(f"{what} must be {expected}, got {shown(value)}")


def _integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and abs(value) <= sys.float_info.max  # pyright: ignore[reportOperatorIssue]


def _numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_number(x) or _numbers(x) for x in value)


_TYPES = {
    type(None): ("an integer", _integer, int),
    bool: ("true or false", lambda value: isinstance(value, bool), bool),
    int: ("an integer", _integer, int),
    float: ("a finite number", _number, float),
    str: ("a text", lambda value: isinstance(value, str), str),
    tuple: ("a list of numbers", _numbers, tuple),
}
