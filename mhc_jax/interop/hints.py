"""The fields of a published code base's own configuration: what is told, what is free, what is fixed."""

from collections.abc import Collection, Mapping
from typing import Any

from mhc_jax.interop.keys import InteropError
from mhc_jax.registry import did_you_mean


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
        told: what the tensors say, which no hint may contradict.
        free: what they cannot say, with the code base's defaults.
        fixed: the one value that the model here can have.
        unread: fields that change nothing.

    Raises:
        InteropError: an unknown hint, one that contradicts the tensors, or one that the model here cannot follow.
    """
    fixed = fixed or {}
    known = {*told, *free, *fixed, *unread}
    for name, value in hints.items():
        if name not in known:
            raise InteropError(f"{system}: unknown hint {name!r}{did_you_mean(name, known)}")
        if name in told and value != told[name]:
            raise InteropError(f"{system}: {name}={value!r} contradicts the tensors, which say {told[name]!r}")
        if name in fixed and value != fixed[name]:
            raise InteropError(f"{system}: {name}={value!r} is not supported, only {fixed[name]!r} is")
    return {name: hints.get(name, default) for name, default in free.items()}
