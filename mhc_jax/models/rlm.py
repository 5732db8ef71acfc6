"""RLM-mHC: a LLaMA-style transformer over streams, and the published form of its mHC layers.

The published model (RMSNorm, interleaved rotary positions, SwiGLU, a tied head) puts an mHC layer as a residual branch
of its own before attention and before the perceptron. Such a layer is one linear map (see
:class:`~mhc_jax.nn.channel.linear_mhc.LinearMHCConfig`): with it the sizes called 125M, 1.3B and 7B have 223M, 2.9B and
15.2B parameters. ``"default"`` is what its documents describe instead: streams that persist through depth, by dynamic
mHC (arXiv 2512.24880), at the sizes claimed.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from mhc_jax.config import ConfigError, check_changes, check_name
from mhc_jax.models.gpt import ends_for
from mhc_jax.nn.channel import LinearConfig, LinearMHCConfig, SwiGLUConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.nn.residual import DynamicMHCConfig, PlainConfig
from mhc_jax.ops import linear_mhc
from mhc_jax.tree import flatten, misfits

Size = Literal["small", "base", "large"]
Form = Literal["default", "original", "folded", "plain"]

# Layers, width, heads, and width of the perceptron: here, and as published. The published one leaves the small and the
# large one's open; these are 8/3 of the width, as its base one is.
SIZES: dict[Size, tuple[int, int, int, int, int]] = {
    "small": (12, 768, 12, 2048, 2048),
    "base": (24, 2048, 16, 5504, 5461),
    "large": (32, 4096, 32, 11776, 10922),
}


def rlm(
    size: Size = "small",
    form: Form = "default",
    *,
    heads: int | None = None,
    hidden: int | None = None,
    **changes: Any,
) -> LMConfig:
    """RLM-mHC of a published size, for sequences of up to 8,192 tokens.

    The published forms have 32,000 token ids, the others those of GPT-2 (50,304), with which the names of the sizes are
    true.

    Args:
        size: ``"small"``, ``"base"`` or ``"large"``: 125M, 1.3B or 7B parameters in the default form.
        form: ``"default"``, four streams through depth by dynamic mHC; ``"plain"``, the same without streams, a LLaMA;
            ``"original"``, the published network at its published widths; ``"folded"``, the same function with every
            mHC layer computed as one D x D map.
        heads: number of attention heads; those of the size if None.
        hidden: width of the perceptron; that of the size if None, or with another ``width`` 8/3 of it.
        changes: fields of :class:`LMConfig` to replace.

    Raises:
        ConfigError: no such size or form; the message says which is nearest.
        TypeError: no such field; so does it.
    """
    check_name("size of rlm", size, get_args(Size))
    check_name("form of rlm", form, get_args(Form))
    check_changes(rlm, LMConfig, changes)
    layers, width, usual_heads, *usual_hidden = SIZES[size]
    original = form in ("original", "folded")
    if hidden is None and changes.get("width", width) == width:
        hidden = usual_hidden[original]
    residual = DynamicMHCConfig() if form == "default" else PlainConfig()
    # The original scales no initial standard deviation by depth.
    between = LinearMHCConfig(form="flows" if form == "original" else "folded") if original else None
    config = LMConfig(
        vocab_size=32000 if original else 50304,
        max_len=8192,
        width=width,
        layers=layers,
        positions="none",
        norm=RMSNormConfig(),
        residual=residual,
        ends=ends_for(residual),
        before_mixer=between,
        mixer=AttentionConfig(
            heads=usual_heads if heads is None else heads,
            rotary="interleaved" if original else "half",
            bias=False,
            scale_output=not original,
        ),
        before_mlp=between,
        mlp=SwiGLUConfig(hidden=hidden, scale_output=not original),
    )
    return config.replace(**changes)


def fold(config: LMConfig, params: dict[str, Any]) -> tuple[LMConfig, dict[str, Any]]:
    """The same function with every linear mHC layer as one matrix: 1 / (2n) of its parameters, for decoding.

    Args:
        params: of ``config``.

    Raises:
        ConfigError: a model without linear mHC layers, or parameters of another.
    """
    sites = {name: part for name, part in config.sites.items() if isinstance(part, LinearMHCConfig)}
    if not sites:
        raise ConfigError("the model has no linear mHC layers to fold")
    _check(config, sites, params)
    blocks = dict(params["blocks"])
    for name, part in sites.items():
        blocks[name] = blocks[name] | {"branch": _folded(part, blocks[name]["branch"])}
    return config.replace(**dict.fromkeys(sites, LinearConfig())), params | {"blocks": blocks}


def _check(config: LMConfig, sites: dict[str, LinearMHCConfig], params: Any) -> None:
    """Raises ConfigError unless the parameters have the linear mHC layers of the model, in their shapes."""
    L, D, expected = config.layers, config.width, {}
    for name, part in sites.items():
        n, branch = part.flows, f"blocks.{name}.branch"
        expected |= {f"{branch}.expand.kernel": (L, D, n * D), f"{branch}.contract.kernel": (L, n * D, D)}
        if part.projection.size(n):
            expected[f"{branch}.logits"] = (L, *part.projection.shape(n))
    leaves = flatten(params) if isinstance(params, Mapping) else {}
    faults = misfits(expected, {name: jnp.shape(leaf) for name, leaf in leaves.items() if name in expected})
    if faults:
        raise ConfigError(f"the parameters do not fit the model: {faults}")


def _folded(config: LinearMHCConfig, branch: dict[str, Any]) -> dict[str, Any]:
    """Parameters of linear channel mixers, from those of the linear mHC of all layers."""
    layers, n = len(branch["expand"]["kernel"]), config.flows
    logits = branch.get("logits", jnp.zeros((layers, *config.projection.shape(n))))
    mixing = jnp.broadcast_to(config.projection.project(logits, n), (layers, n, n))  # one matrix if without logits
    kernel = jax.vmap(linear_mhc.fold)(branch["expand"]["kernel"], branch["contract"]["kernel"], mixing)
    return {"proj": {"kernel": kernel}}
