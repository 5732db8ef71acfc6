"""Rotary positions in a ``config.json`` of Hugging Face transformers."""

import math
from collections.abc import Mapping
from typing import Any

from mhc_jax.config import ConfigError
from mhc_jax.interop.hints import settle
from mhc_jax.interop.keys import InteropError
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.rotary import RotaryScalingConfig
from mhc_jax.registry import shown

# Versions before 5 wrote the first two, and later ones the third.
FIELDS = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
# The scalings that both sides know, by one name.
KINDS = ("linear", "llama3", "yarn")
_BASE = 10000.0


def read(system: str, config: Mapping[str, Any]) -> tuple[float, RotaryScalingConfig | None]:
    """The base of the angles and their scaling, as transformers understands these fields.

    Args:
        system: names the model in messages.
        config: the contents of ``config.json``.

    Raises:
        InteropError: a scaling that is not supported, or fields that it does not have.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    found = config.get(name) or {}
    if not isinstance(found, Mapping) or any(isinstance(value, Mapping) for value in found.values()):
        raise InteropError(f"{system}: {name} must be one set of fields for all layers, got {shown(found)}")
    given = {"rope_theta": config.get("rope_theta"), "partial_rotary_factor": config.get("partial_rotary_factor")}
    given |= {field: value for field, value in found.items() if value is not None}
    base = _BASE if given["rope_theta"] is None else given["rope_theta"]
    if given["partial_rotary_factor"] not in (None, 1):
        part = shown(given["partial_rotary_factor"])
        raise InteropError(f"{system}: partial_rotary_factor={part} is not supported, only 1 is")
    kind = given.get("rope_type", given.get("type", "default"))
    rest = {field: value for field, value in given.items() if field not in _COMMON and value is not None}
    if kind not in ("default", *KINDS):
        raise InteropError(f"{system}: rope_type={shown(kind)} is not supported, only default, {', '.join(KINDS)} are")
    number = settle(system, {"rope_theta": base}, told={}, free={"rope_theta": _BASE})["rope_theta"]
    if kind == "default":
        return number, None
    try:
        return number, _scaling(kind, _without_mscale(system, rest) if kind == "yarn" else rest, config)
    except ConfigError as error:
        raise InteropError(f"{system}: {name}: {error}") from None


_MSCALES = ("mscale", "mscale_all_dim")
_COMMON = ("rope_theta", "rope_type", "type", "partial_rotary_factor")


def _scaling(kind: str, given: dict[str, Any], config: Mapping[str, Any]) -> RotaryScalingConfig:
    if "factor" not in given:
        raise ConfigError(f"factor is missing, which rope_type {kind!r} needs")
    length = "original_max_position_embeddings"
    if kind != "linear":
        lengths = config.get(length), given.get(length), config.get("max_position_embeddings")
        given = given | {length: next((value for value in lengths if value is not None), None)}
    scaling = RotaryScalingConfig.from_dict({"kind": kind} | given)
    scaling.validate()
    return scaling


def _without_mscale(system: str, given: dict[str, Any]) -> dict[str, Any]:
    """DeepSeek's two factors of YaRN's gain as the gain that they make, unless it is given."""
    scales = {name: given[name] for name in _MSCALES if name in given}
    rest = {name: value for name, value in given.items() if name not in _MSCALES}
    above, below = settle(system, scales, told={}, free=dict.fromkeys(_MSCALES, 0.0)).values()
    if "attention_factor" in rest or not above or not below:
        return rest
    log = math.log(
        max(1.0, settle(system, {"factor": given.get("factor", 1.0)}, told={}, free={"factor": 1.0})["factor"])
    )
    return rest | {"attention_factor": (0.1 * above * log + 1) / (0.1 * below * log + 1)}


def write(mixer: AttentionConfig) -> dict[str, Any]:
    """The fields, in the form of version 5 and in the one before it."""
    scaling = None
    if mixer.rotary_scaling is not None:
        scaling = {name: value for name, value in mixer.rotary_scaling.to_dict().items() if value is not None}
        scaling = {"rope_type": scaling.pop("kind"), **scaling}
    base = {"rope_theta": mixer.rotary_base}
    return {**base, "rope_scaling": scaling, "rope_parameters": base | (scaling or {"rope_type": "default"})}
