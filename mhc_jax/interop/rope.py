"""Rotary positions in a ``config.json`` of Hugging Face transformers."""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from mhc_jax.config import ConfigError
from mhc_jax.interop.hints import settle
from mhc_jax.interop.keys import InteropError
from mhc_jax.nn.rotary import RotaryScalingConfig
from mhc_jax.registry import shown

# The record of a scaling before version 5, and since then; the fields that stand beside it or in it.
_RECORDS = ("rope_scaling", "rope_parameters")
_BESIDE = ("rope_theta", "partial_rotary_factor")
_LENGTH = "original_max_position_embeddings"
FIELDS = (*_RECORDS, *_BESIDE, _LENGTH)

# The scalings that both sides know, by one name.
KINDS = ("linear", "llama3", "yarn")
_BASE = 10000.0


class Rope(NamedTuple):
    """Base and scaling of the angles; and ``mscale_all_dim``, by which DeepSeek multiplies all scores under YaRN."""

    base: float
    scaling: RotaryScalingConfig | None = None
    mscale_all_dim: float = 0.0


def read(system: str, stored: Mapping[str, Any], hints: Mapping[str, Any], max_len: int) -> Rope:
    """The rotary positions, as transformers understands these fields.

    Args:
        system: names the model in messages.
        stored: the contents of ``config.json``.
        hints: replace them.
        max_len: the length of a model whose fields state none.

    Raises:
        InteropError: a scaling that is not supported, or fields that it does not have.
    """
    name, record = _record(system, stored)
    given = _present(stored, _BESIDE) | record
    if {*_RECORDS} & hints.keys():
        name, record = _record(system, hints)
        given = _present(given, _BESIDE) | record
    given |= _present(hints, _BESIDE)
    base = _number(system, "rope_theta", given.pop("rope_theta", _BASE))
    if (part := given.pop("partial_rotary_factor", 1)) != 1:
        raise InteropError(f"{system}: partial_rotary_factor={shown(part)} is not supported, only 1 is")
    older = given.pop("type", "default")
    kind = given.pop("rope_type", older)
    if kind == "default":
        return Rope(base)
    if kind not in KINDS:
        raise InteropError(f"{system}: rope_type={shown(kind)} is not supported, only default, {', '.join(KINDS)} are")
    if "factor" not in given:
        raise InteropError(f"{system}: {name}: factor is missing, which rope_type {kind!r} needs")
    mscale_all_dim = 0.0
    if kind == "yarn":
        mscale_all_dim = _number(system, "mscale_all_dim", given.get("mscale_all_dim", 0.0))
        given = _without_mscale(system, given)
    if kind != "linear":
        given |= _original_length(given, {**stored, **hints}, max_len)
    try:
        scaling = RotaryScalingConfig.from_dict(given | {"kind": kind})
        scaling.validate()
    except ConfigError as error:
        raise InteropError(f"{system}: {name}: {error}") from None
    return Rope(base, scaling, mscale_all_dim)


def write(rope: Rope) -> dict[str, Any]:
    """The fields, in the form of version 5 and in the one before it."""
    scaling = None
    if rope.scaling is not None:
        fields = _present(rope.scaling.to_dict())
        scaling = {"rope_type": fields.pop("kind"), **fields}
        if rope.mscale_all_dim:
            scaling["mscale_all_dim"] = rope.mscale_all_dim
    base = {"rope_theta": rope.base}
    return {**base, "rope_scaling": scaling, "rope_parameters": base | (scaling or {"rope_type": "default"})}


def _record(system: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and fields of the record that counts."""
    older, newer = _RECORDS
    name = older if config.get(older) else newer
    record = config.get(name) or {}
    if not isinstance(record, Mapping) or any(isinstance(value, Mapping) for value in record.values()):
        raise InteropError(f"{system}: {name} must be one set of fields for all layers, got {shown(record)}")
    return name, _present(record)


def _present(fields: Mapping[str, Any], names: Collection[str] | None = None) -> dict[str, Any]:
    """The fields that are not null, all or those of some names."""
    return {name: x for name, x in fields.items() if x is not None and (names is None or name in names)}


def _number(system: str, name: str, value: Any) -> float:
    return settle(system, {name: value}, told={}, free={name: 0.0})[name]


def _without_mscale(system: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSeek's two factors of YaRN's gain as the gain that they make, unless it is given."""
    rest = dict(given)
    above, below = (_number(system, name, rest.pop(name, 0.0)) for name in ("mscale", "mscale_all_dim"))
    if above and below and "attention_factor" not in rest:
        log = math.log(max(_number(system, "factor", rest["factor"]), 1.0))
        divisor = 0.1 * below * log + 1
        if divisor <= 0:
            raise InteropError(f"{system}: mscale_all_dim={below} makes a gain of no meaning; give attention_factor")
        rest["attention_factor"] = (0.1 * above * log + 1) / divisor
    return rest


def _original_length(given: Mapping[str, Any], config: Mapping[str, Any], max_len: int) -> dict[str, Any]:
    """The original length where the record may leave it open: beside the record, in it, or the whole length."""
    lengths = config.get(_LENGTH), given.get(_LENGTH), config.get("max_position_embeddings"), max_len
    return {_LENGTH: next(length for length in lengths if length is not None)}
