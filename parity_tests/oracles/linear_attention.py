"""Gated delta rules of Hugging Face transformers, alone, in their layers and in decoders; a decoder of GLA beside it.

No package that runs on CPU has gated linear attention: its decoder is the recurrence, token by token, around the same
published norms and perceptrons.
"""

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import OlmoHybridConfig, Qwen3NextConfig
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as olmo
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from mhc_jax.nn.mixers import GatedDeltaConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.ops.delta_rule import gated_delta_rule
from parity_tests.cases.linear_attention import delta_inputs
from parity_tests.compare import Case
from parity_tests.frameworks import vjp_jax, vjp_torch
from parity_tests.oracles.language_models import Published, case
from parity_tests.oracles.modules import beside, float32_is, ours

WIDTH, H, VALUES, K, V, LONG = 6, 2, 4, 3, 4, 70
NEXT = Qwen3NextConfig(
    hidden_size=WIDTH,
    linear_num_key_heads=H,
    linear_num_value_heads=VALUES,
    linear_key_head_dim=K,
    linear_value_head_dim=V,
    linear_conv_kernel_dim=4,
    layer_types=["linear_attention"],
    num_hidden_layers=1,
    rms_norm_eps=1e-3,
)
DELTA = {"vocab_size": 13, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "norm_eps": 1e-5}
DELTA |= {"num_heads": 2, "head_dim": 3, "expand_v": 2.0, "use_short_conv": True}
DELTA |= {"allow_neg_eigval": False, "tie_word_embeddings": False}
GLA = {"vocab_size": 13, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "norm_eps": 1e-3}
GLA |= {"num_heads": 3, "num_kv_heads": 3, "expand_k": 0.5, "expand_v": 1.0, "use_short_conv": False}
GLA |= {"tie_word_embeddings": False}


def cases() -> Iterator[Case]:
    for function in (qwen.torch_chunk_gated_delta_rule, qwen.torch_recurrent_gated_delta_rule):
        yield _rule(function)
    layer = qwen.Qwen3NextGatedDeltaNet(NEXT, 0)
    yield beside("transformers Qwen3NextGatedDeltaNet", layer, _layer_torch, layer_jax, x=(2, 5, WIDTH))
    for what, changes in {
        "": {},
        "no convolution, negative eigenvalues, tied": {
            "use_short_conv": False,
            "allow_neg_eigval": True,
            "tie_word_embeddings": True,
        },
    }.items():
        yield case(what, Published("gated_deltanet", OlmoHybridDecoder, SimpleNamespace, DELTA | changes))
    for what, changes in {
        "": {},
        "grouped heads, convolutions, tied": {"num_kv_heads": 1, "use_short_conv": True, "tie_word_embeddings": True},
    }.items():
        yield case(what, Published("gla", GLADecoder, SimpleNamespace, GLA | changes, origin="written out"))


def _rule(function) -> Case:
    """Longer than a chunk of ours and of theirs."""
    arrays = {name: x for name, x in delta_inputs(LONG).items() if name != "reset_BT"}

    def published(arrays):
        names = {"q_BTHK": "query", "k_BTHK": "key", "v_BTHV": "value", "log_decay_BTH": "g", "beta_BTH": "beta"}
        inputs = {theirs: arrays[ours] for ours, theirs in names.items()}
        with float32_is(arrays["q_BTHK"].dtype):
            return function(**inputs, initial_state=arrays["s0_BHKV"], output_final_state=True)

    return Case(
        tier="oracles",
        name=f"transformers {function.__name__}",
        jax=functools.partial(vjp_jax, lambda arrays: gated_delta_rule(**arrays), arrays),
        torch=functools.cache(functools.partial(vjp_torch, published, arrays)),
    )


def _layer_torch(module, arrays):
    return module(arrays["x"])


def layer_jax(arrays):
    """Fused rows: by head of keys its queries, keys, the values that it serves and their gates; strengths, decays."""
    config = GatedDeltaConfig(heads=H, value_heads=VALUES, head_width=K, expand_v=V / K, norm_eps=1e-3)
    each = VALUES // H
    cuts = np.cumsum([K, K, each * V])
    rows = arrays["in_proj_qkvz.weight"].reshape(H, -1, WIDTH)
    q, k, v, g = (x.reshape(-1, WIDTH).T for x in jnp.split(rows, cuts, axis=1))
    b, a = (x.reshape(-1, WIDTH).T for x in jnp.split(arrays["in_proj_ba.weight"].reshape(H, -1, WIDTH), 2, axis=1))
    convs = jnp.split(arrays["conv1d.weight"][:, 0].T, [H * K, 2 * H * K], axis=1)
    params = {f"{name}_proj": {"kernel": x} for name, x in zip("qkvgba", (q, k, v, g, b, a))}
    params |= {f"{name}_conv": {"filter": x} for name, x in zip("qkv", convs)}
    params |= {"a_log": arrays["A_log"], "dt_bias": arrays["dt_bias"], "o_norm": {"scale": arrays["norm.weight"]}}
    params["out_proj"] = {"kernel": arrays["out_proj.weight"].T}
    mixer = ours(lambda policy, init: config.build(WIDTH, policy, init), params, arrays["x"].dtype)
    return mixer(arrays["x"], None, Scope.over(arrays["x"].shape[1]))[0]


class Decoder(nn.Module):
    """Pre-norm blocks under the names of flash-linear-attention; the norms and perceptrons are OLMo's."""

    mixer: type[nn.Module]

    def __init__(self, fields: SimpleNamespace):
        super().__init__()
        width = fields.hidden_size
        shared = SimpleNamespace(hidden_size=width, intermediate_size=fields.intermediate_size, hidden_act="silu")

        def norm():
            return olmo.OlmoHybridRMSNorm(width, eps=fields.norm_eps)

        self.model = nn.Module()
        self.model.embeddings = nn.Embedding(fields.vocab_size, width)
        self.model.layers = nn.ModuleList()
        for _ in range(fields.num_hidden_layers):
            parts = {
                "attn_norm": norm(),
                "attn": self.mixer(fields),
                "mlp_norm": norm(),
                "mlp": olmo.OlmoHybridMLP(shared),
            }
            self.model.layers.append(nn.ModuleDict(parts))
        self.model.norm = norm()
        self.lm_head = nn.Linear(width, fields.vocab_size, bias=False)
        if fields.tie_word_embeddings:
            self.lm_head.weight = self.model.embeddings.weight

    def forward(self, tokens: torch.Tensor) -> SimpleNamespace:
        model: Any = self.model
        x = model.embeddings(tokens)
        for layer in model.layers:
            x = x + layer["attn"](layer["attn_norm"](x))
            x = x + layer["mlp"](layer["mlp_norm"](x))
        return SimpleNamespace(logits=self.lm_head(model.norm(x)))


class _OlmoMixer(nn.Module):
    """The layer of OLMo, whose convolution is one."""

    def __init__(self, fields):
        super().__init__()
        config = OlmoHybridConfig(
            hidden_size=fields.hidden_size,
            linear_num_key_heads=fields.num_heads,
            linear_num_value_heads=fields.num_heads,
            linear_key_head_dim=fields.head_dim,
            linear_value_head_dim=round(fields.expand_v * fields.head_dim),
            linear_conv_kernel_dim=4,
            linear_allow_neg_eigval=fields.allow_neg_eigval,
            num_hidden_layers=4,
        )
        layer = olmo.OlmoHybridGatedDeltaNet(config, 0)
        self.published = [layer]  # not among the modules: its parameters are given by the names below
        for name in ("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj", "o_proj", "o_norm"):
            setattr(self, name, nn.Module())
            getattr(self, name).weight = nn.Parameter(getattr(layer, name).weight.detach())
        self.A_log, self.dt_bias = nn.Parameter(layer.A_log.detach()), nn.Parameter(layer.dt_bias.detach())
        self.channels = (layer.key_dim, layer.key_dim, layer.value_dim)
        if fields.use_short_conv:
            for name, channels in zip("qkv", self.channels):
                setattr(self, f"{name}_conv1d", nn.Conv1d(channels, channels, 4, groups=channels, bias=False))

    def forward(self, x):
        weights = {name: weight for name, weight in self.named_parameters() if "conv1d" not in name}
        if hasattr(self, "q_conv1d"):
            weights["conv1d.weight"] = torch.cat([getattr(self, f"{name}_conv1d").weight for name in "qkv"])
        else:  # the last tap alone is no convolution
            weights["conv1d.weight"] = torch.eye(4).to(x)[3].expand(sum(self.channels), 1, 4)
        return torch.func.functional_call(self.published[0], weights, (x,))


class OlmoHybridDecoder(Decoder):
    mixer = _OlmoMixer


class _GLAMixer(nn.Module):
    """``S_t = diag(exp(g_t)) S_{t-1} + k_t v_t'``, ``o_t = S_t' q_t / sqrt(K)``."""

    def __init__(self, fields):
        super().__init__()
        width, self.heads, self.groups = fields.hidden_size, fields.num_heads, fields.num_kv_heads
        keys, values = round(fields.expand_k * width), round(fields.expand_v * width)
        fewer = self.groups / self.heads
        rows = {"q": keys, "k": round(keys * fewer), "v": round(values * fewer)}
        for name, channels in rows.items():
            setattr(self, f"{name}_proj", nn.Linear(width, channels, bias=False))
            if fields.use_short_conv:
                setattr(self, f"{name}_conv1d", nn.Conv1d(channels, channels, 4, groups=channels, bias=False))
        self.g_proj = nn.Linear(width, values, bias=False)
        self.gk_proj = nn.Sequential(nn.Linear(width, 16, bias=False), nn.Linear(16, rows["k"]))
        self.g_norm_swish_gate = qwen.Qwen3NextRMSNormGated(values // self.heads, eps=fields.norm_eps)
        self.o_proj = nn.Linear(values, width, bias=False)

    def forward(self, x):
        q, k, v = (self._convolved(name, getattr(self, f"{name}_proj")(x)) for name in "qkv")
        g = F.logsigmoid(self.gk_proj(x)) / 16
        q = q.unflatten(-1, (self.heads, -1))
        k, v, g = (
            z.unflatten(-1, (self.groups, -1)).repeat_interleave(self.heads // self.groups, 2) for z in (k, v, g)
        )
        S, outputs = 0, []
        for t in range(x.shape[1]):
            S = g[:, t].exp()[..., None] * S + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
            outputs.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]) / q.shape[-1] ** 0.5)
        gate = self.g_proj(x).unflatten(-1, (self.heads, -1))
        return self.o_proj(self.g_norm_swish_gate(torch.stack(outputs, 1), gate).flatten(2))

    def _convolved(self, name, x):
        if not hasattr(self, f"{name}_conv1d"):
            return x
        return F.silu(getattr(self, f"{name}_conv1d")(F.pad(x.mT, (3, 0)))).mT


class GLADecoder(Decoder):
    mixer = _GLAMixer
