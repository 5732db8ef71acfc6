"""Checkpoints of the published code bases, by the name of their system."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mhc_jax import registry
from mhc_jax.functional import Params
from mhc_jax.interop.keys import InteropError
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.model import ModelConfig
from mhc_jax.registry import required

AXIS = "original"


class Original:
    """One published code base. Subclasses register under :data:`AXIS` and the system's name.

    Attributes:
        model_type: its name in Hugging Face transformers, if it has one; then all four methods must be there.
        package: what makes that name known to transformers, if transformers does not know it by itself.
        models: the kind of its models.
    """

    model_type: str | None = None
    package: str | None = None
    models: type[ModelConfig] = LMConfig

    @classmethod
    @required
    def read(cls, state_dict: Mapping[str, Any], hints: Mapping[str, Any]) -> tuple[ModelConfig, Params]:
        """See :func:`from_original`."""

    @classmethod
    @required
    def write(cls, config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
        """See :func:`to_original`."""

    @classmethod
    @required
    def faults(cls, config: LMConfig) -> dict[str, bool]:
        """What a model of ``model_type`` cannot express, and whether ``config`` has it."""

    @classmethod
    @required
    def huggingface(cls, config: LMConfig, params: Params) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The contents of ``config.json`` and the tensors of a folder, for a model without faults."""


def from_original(system: str, state_dict: Mapping[str, Any], **hints: Any) -> tuple[ModelConfig, Params]:
    """The model, in its ``original`` form, and the parameters that a published checkpoint holds.

    Args:
        system: ``"deepseek_v2"``, ``"deepseek_v3"``, ``"gated_deltanet"``, ``"gla"``, ``"gpt2"``, ``"llama"``,
            ``"mamba"``, ``"mhc_ssm"``, ``"nanogpt"``, ``"qwen3"``, ``"rlm"``, ``"shc"``, ``"shc_student"`` or
            ``"transformer_scan"``.
        state_dict: the state_dict as tensors or arrays, or the whole checkpoint around it.
        hints: fields of the original's configuration that the tensors do not show.

    Raises:
        InteropError: an unknown system or hint, a hint that contradicts the tensors, or keys that are
            missing, unexpected or of the wrong shape (all listed).
    """
    reader = _system(system)
    if not isinstance(state_dict, Mapping):
        raise InteropError(f"{system}: a state_dict is a dict from names to tensors, not {type(state_dict).__name__}")
    return reader.read(state_dict, hints)


def to_original(system: str, config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    """Inverse of :func:`from_original`: the original's state_dict as NumPy arrays.

    Raises:
        InteropError: an unknown system, or a model that the original cannot express.
    """
    writer = _system(system)
    if writer.models is LMConfig:
        check_language_model(config)
    elif not isinstance(config, writer.models):
        raise InteropError(f"checkpoints of {system} hold a {writer.models.kind!r}, not a {config.kind!r}")
    return writer.write(config, params)


def check_language_model(config: ModelConfig) -> None:
    """Raises InteropError unless it is one, as most published models are."""
    if not isinstance(config, LMConfig):
        raise InteropError(f"checkpoints of other code bases hold language models, not a {config.kind!r}")


def plain_faults(config: LMConfig) -> dict[str, bool]:
    """What keeps a model from being a stack without streams and without positions in its embedding."""
    return {
        f"residual {config.residual.kind!r}": config.residual.kind != "plain",
        f"ends {config.ends.kind!r}": config.ends.kind != "identity",
        "value residual": config.value_residual is not None,
        "learned positions": config.positions != "none",
        f"{config.outputs} outputs": config.outputs not in (None, config.vocab_size),
    }


def refuse(system: str, faults: Mapping[str, bool]) -> None:
    """Raises InteropError if there is a fault, naming all of them."""
    if named := [fault for fault, found in faults.items() if found]:
        raise InteropError(f"{system} cannot express this model: it has {', '.join(named)}")


def _system(system: str) -> type[Original]:
    try:
        return registry.get(AXIS, system)
    except KeyError as error:
        raise InteropError(error.args[0]) from None
