"""The residual streams of DeepSeek-V4, GLM-5-next, Hy-V4 and Qwen4-exp in Hugging Face transformers."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import torch
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as deepseek
from transformers.models.glm5_next import modeling_glm5_next as glm
from transformers.models.hy_v4 import modeling_hy_v4 as hy
from transformers.models.qwen4_exp import modeling_qwen4_exp as qwen

from mhc_jax.interop.deepseek_v4 import head_from_deepseek_v4, site_from_deepseek_v4
from mhc_jax.nn.ends import CopyEndsConfig
from mhc_jax.nn.projections import DeepseekSinkhornConfig, IdentityProjectionConfig
from mhc_jax.nn.residual import DynamicMHCConfig, GatedResidualConfig, ResidualConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.taps import Taps
from mhc_jax.ops.streams import Streams
from parity_tests.compare import Case
from parity_tests.oracles.modules import BATCH, TIME, beside, ours

N, WIDTH, EPS, NORM_EPS, ITERS, MAGNITUDE = 4, 6, 1e-6, 1e-5, 20, 2.0
STREAMS, BRANCH = (BATCH, TIME, N, WIDTH), (BATCH, TIME, WIDTH)

CONFIG: Any = SimpleNamespace(
    hc_mult=N,
    hidden_size=WIDTH,
    hc_sinkhorn_iters=ITERS,
    hc_eps=EPS,
    rms_norm_eps=NORM_EPS,
    hc_magnitude=MAGNITUDE,
    hc_count=N,
    hc_lowrank=3,
)
MHC = DynamicMHCConfig(
    streams=N, projection=DeepseekSinkhornConfig(iters=ITERS, eps=EPS), norm_eps=NORM_EPS, pre_eps=EPS
)
IHC = DynamicMHCConfig(
    streams=N,
    projection=IdentityProjectionConfig(),
    norm_eps=NORM_EPS,
    pre_eps=EPS,
    post_eps=EPS,
    post_gain=MAGNITUDE,
)
GATED = GatedResidualConfig(streams=N, rank=3, norm_eps=NORM_EPS, branch_norm=False)
HEAD = CopyEndsConfig(collapse="head", head_eps=EPS, norm_eps=NORM_EPS)


def cases() -> Iterator[Case]:
    inputs = {"x": STREAMS, "y": BRANCH}
    for published in (deepseek.DeepseekV4HyperConnection(CONFIG), glm.Glm5NextTextHyperConnection(CONFIG)):
        yield beside(_name(published), published, _mhc_torch, _mhc_jax, **inputs)
    published = hy.HYV4HyperConnection(CONFIG)
    yield beside(_name(published), published, _ihc_torch, _ihc_jax, **inputs)
    published = qwen.Qwen4ExpTextGatedResidual(CONFIG)
    yield beside(_name(published), published, _gated_torch, _gated_jax, **inputs)
    for published in (deepseek.DeepseekV4HyperHead(CONFIG), hy.HYV4HyperHead(CONFIG)):
        yield beside(_name(published), published, _head_torch, _head_jax, x=STREAMS)
    published = glm.Glm5NextTextHyperHead()
    yield beside(_name(published), published, _head_torch, _mean_jax, x=STREAMS)


def _name(published: torch.nn.Module) -> str:
    return f"transformers {type(published).__name__}"


def _mhc_torch(module, arrays):
    post, comb, collapsed = module(arrays["x"])
    # As the decoder layer of the model goes on.
    mixed = post[..., None] * arrays["y"][..., None, :] + comb.transpose(-1, -2) @ arrays["x"]
    return {"collapsed": collapsed, "post": post, "comb": comb, "state": mixed}


def _ihc_torch(module, arrays):
    post, collapsed = module(arrays["x"])
    return {"collapsed": collapsed, "post": post, "state": arrays["x"] + post[..., None] * arrays["y"][..., None, :]}


def _mhc_jax(arrays):
    collapsed, taps, state = _site(MHC, arrays)
    return {"collapsed": collapsed, "post": taps["h_post"], "comb": jnp.swapaxes(taps["h_res"], -1, -2), "state": state}


def _ihc_jax(arrays):
    collapsed, taps, state = _site(IHC, arrays)
    return {"collapsed": collapsed, "post": taps["h_post"], "state": state}


def _site(config: DynamicMHCConfig, arrays):
    return _run(config, site_from_deepseek_v4(*(arrays[name] for name in ("fn", "base", "scale"))), arrays)


def _run(config: ResidualConfig, params: dict[str, Any], arrays):
    """The site's reading, the taps, and the state after the site."""
    residual = ours(lambda policy, init: config.build(WIDTH, policy, init), params, arrays["x"].dtype)
    scope = Scope.over(arrays["x"].shape[1], taps=(taps := Taps()))
    h = Streams.unstack(arrays["x"])
    collapsed, ctx = residual.pre(h, scope)
    return collapsed, taps.values, residual.post(h, arrays["y"], ctx, scope).stack()


def _gated_torch(module, arrays):
    mixed, carried, inject = module(arrays["x"].flatten(2))
    # As the decoder layer of the model goes on.
    state = carried.unflatten(-1, (N, WIDTH)) + inject[..., None] * arrays["y"][..., None, :]
    return {"collapsed": mixed, "post": inject, "state": state}


def _gated_jax(arrays):
    params = {
        "gate_scale": arrays["hc_norm.weight"].reshape(N, WIDTH),
        "down": arrays["input_mix_weight_down.weight"],
        "up": arrays["input_mix_weight_up.weight"],
        "inject": arrays["block_inject_weight.weight"],
    }
    collapsed, taps, state = _run(GATED, params, arrays)
    return {"collapsed": collapsed, "post": taps["h_post"], "state": state}


def _head_torch(module, arrays):
    return module(arrays["x"])


def _head_jax(arrays):
    params = head_from_deepseek_v4(*(arrays[name] for name in ("hc_fn", "hc_base", "hc_scale")))
    return _ends(HEAD, params, arrays).collapse(Streams.unstack(arrays["x"]))


def _mean_jax(arrays):
    return _ends(CopyEndsConfig(), {}, arrays).collapse(Streams.unstack(arrays["x"]))


def _ends(config: CopyEndsConfig, params: dict[str, Any], arrays) -> Any:
    return ours(lambda policy, init: config.build(WIDTH, N, policy, init), params, arrays["x"].dtype)
