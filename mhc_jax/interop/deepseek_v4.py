"""The hyper-connection tensors of DeepSeek-V4, GLM-5-next and Hy-V4, to and from the parameters of our sites.

They are those of the residual ``dynamic_mhc`` (with ``deepseek_sinkhorn``, for Hy-V4 ``identity``) and of the ends
``copy`` with ``collapse="head"``. The published mixing matrix is the transpose of ours, ``comb[j, k] = H_res[k, j]``,
so rows 2n + j n + k and 2n + k n + j of ``fn`` and ``base`` change places; all else stays. Arrays of any library pass,
traced ones included.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mhc_jax.config import check_name
from mhc_jax.interop.keys import InteropError, account

Names = Literal["transformers", "released"]
Site = dict[str, Any]

_PARTS = {"fn": "phi", "base": "bias", "scale": "alpha"}
_SITES = {"attn": "mixer", "ffn": "mlp"}
_FORMS: dict[Names, str] = {"transformers": "{site}_hc.{part}", "released": "hc_{site}_{part}"}
_NAME = re.compile(r"(?:.*\blayers\.(\d+)\.)?(?:(attn|ffn)_hc\.|hc_(attn|ffn)_)(fn|base|scale)")


def site_from_deepseek_v4(fn: Any, base: Any, scale: Any) -> Site:
    """``phi``, ``bias`` and ``alpha`` of a site ``dynamic_mhc``.

    Args:
        fn: (K, n C) with K = n (n + 2), or K = 2 n where ``scale`` has two entries (Hy-V4: no mixing).
        base: (K,).
        scale: (3,) or (2,).

    Raises:
        InteropError: shapes that do not fit each other.
    """
    order = _order(fn, base, scale)
    return {"phi": fn[order], "bias": base[order], "alpha": scale}


def site_to_deepseek_v4(phi: Any, bias: Any, alpha: Any) -> dict[str, Any]:
    """Inverse of :func:`site_from_deepseek_v4`: ``fn``, ``base`` and ``scale``."""
    order = _order(phi, bias, alpha)
    return {"fn": phi[order], "base": bias[order], "scale": alpha}


def head_from_deepseek_v4(hc_fn: Any, hc_base: Any, hc_scale: Any) -> Site:
    """``phi`` (n, n C), ``bias`` (n,) and ``alpha`` (1,) of copying ends that collapse by their head."""
    return {"phi": hc_fn, "bias": hc_base, "alpha": hc_scale}


def head_to_deepseek_v4(phi: Any, bias: Any, alpha: Any) -> dict[str, Any]:
    """Inverse of :func:`head_from_deepseek_v4`."""
    return {"hc_fn": phi, "hc_base": bias, "hc_scale": alpha}


def layer_from_deepseek_v4(state_dict: Mapping[str, Any], layer: int | None = None) -> dict[str, Site]:
    """Both sites of a layer, ``{"mixer": ..., "mlp": ...}``: the parameters under ``<site>.residual`` in our blocks.

    Args:
        state_dict: of a layer or of a model, by the names of transformers (``attn_hc.fn``) or of the released files
            (``hc_attn_fn``); its other tensors are passed over.
        layer: index of the layer in the model.

    Raises:
        InteropError: tensors that are missing, of several layers, or of the wrong shape.
    """
    found: dict[str, Any] = {}
    numbers = set()
    for name, value in state_dict.items():
        match = _NAME.fullmatch(name)
        if match and (layer is None or match[1] is None or int(match[1]) == layer):
            numbers.add(match[1])
            found[f"{match[2] or match[3]} {match[4]}"] = value
    if len(numbers) > 1:
        raise InteropError(f"the tensors are those of {len(numbers)} layers: say which")
    wanted = [f"{site} {part}" for site in _SITES for part in _PARTS]
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    # Only presence is checked here; the sites check sizes.
    account("the hyper-connections of DeepSeek-V4", {name: shapes.get(name, ()) for name in wanted}, shapes)
    return {ours: site_from_deepseek_v4(*(found[f"{site} {part}"] for part in _PARTS)) for site, ours in _SITES.items()}


def layer_to_deepseek_v4(sites: Mapping[str, Site], names: Names = "transformers") -> dict[str, Any]:
    """Inverse of :func:`layer_from_deepseek_v4`, without a prefix."""
    check_name("names of DeepSeek-V4", names, _FORMS)
    return {
        _FORMS[names].format(site=site, part=part): value
        for site, ours in _SITES.items()
        for part, value in site_to_deepseek_v4(**sites[ours]).items()
    }


def _order(fn: Any, base: Any, scale: Any) -> np.ndarray:
    """The rows of one side in the order of the other, for either direction."""
    rows, columns = fn.shape
    mixing = tuple(scale.shape) == (3,)
    n = round((1 + rows) ** 0.5) - 1 if mixing else rows // 2
    right = rows > 0 and rows == (n * (n + 2) if mixing else 2 * n) and columns % n == 0
    if not right or tuple(base.shape) != (rows,) or tuple(scale.shape) not in ((3,), (2,)):
        raise InteropError(
            f"not the hyper-connections of one site: fn {tuple(fn.shape)}, base {tuple(base.shape)}, "
            f"scale {tuple(scale.shape)}; expected (K, n C), (K,) and (3,) with K = n (n + 2), or (2,) with K = 2 n"
        )
    order = np.arange(rows)
    if mixing:
        order[2 * n :] = order[2 * n :].reshape(n, n).T.reshape(-1)
    return order
