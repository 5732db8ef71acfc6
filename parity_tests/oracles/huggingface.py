"""The residual streams of DeepSeek-V4, GLM-5-next, Hy-V4 and Qwen4-exp as Hugging Face transformers runs them."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import torch
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as deepseek
from transformers.models.glm5_next import modeling_glm5_next as glm
from transformers.models.hy_v4 import modeling_hy_v4 as hy

from mhc_jax.interop.deepseek_v4 import site_from_deepseek_v4
from mhc_jax.nn.residual import DeepseekSinkhornConfig, DynamicMHCConfig, IdentityProjectionConfig
from parity_tests.compare import Case
from parity_tests.oracles.modules import BATCH, TIME, Recorded, beside, ours

N, WIDTH, EPS, NORM_EPS, ITERS, MAGNITUDE = 4, 6, 1e-6, 1e-5, 20, 2.0
STREAMS, BRANCH = (BATCH, TIME, N, WIDTH), (BATCH, TIME, WIDTH)

CONFIG: Any = SimpleNamespace(
    hc_mult=N,
    hidden_size=WIDTH,
    hc_sinkhorn_iters=ITERS,
    hc_eps=EPS,
    rms_norm_eps=NORM_EPS,
    hc_magnitude=MAGNITUDE,
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


def cases() -> Iterator[Case]:
    inputs = {"x": STREAMS, "y": BRANCH}
    for published in (deepseek.DeepseekV4HyperConnection(CONFIG), glm.Glm5NextTextHyperConnection(CONFIG)):
        yield beside(_name(published), published, _mhc_torch, _mhc_jax, **inputs)
    published = hy.HYV4HyperConnection(CONFIG)
    yield beside(_name(published), published, _ihc_torch, _ihc_jax, **inputs)


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
    params = site_from_deepseek_v4(*(arrays[name] for name in ("fn", "base", "scale")))
    residual = ours(lambda policy, init: config.build(WIDTH, policy, init), params, arrays["x"].dtype)
    tap = Recorded()
    collapsed, ctx = residual.pre(arrays["x"], tap=tap)
    return collapsed, tap.values, residual.post(arrays["x"], arrays["y"], ctx, tap=tap)
