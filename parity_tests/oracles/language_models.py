"""Language models of Hugging Face transformers: logits, loss, and the gradient of every parameter."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import mhc_jax
from mhc_jax import interop
from mhc_jax.ops.loss import cross_entropy
from parity_tests.compare import Case, DType, Values
from parity_tests.frameworks import Arrays, cast, jax_precision, jit, jitter
from parity_tests.oracles.modules import float32_is
from parity_tests.taps import in_dtype

VOCAB, LENGTH = 13, 16
HEAD = "lm_head.weight"
NO_ENDS = {"bos_token_id": None, "eos_token_id": None}
GPT2 = NO_ENDS | {"vocab_size": VOCAB, "n_positions": LENGTH, "n_embd": 12, "n_layer": 2, "n_head": 3}
LLAMA = NO_ENDS | {
    "vocab_size": VOCAB,
    "max_position_embeddings": LENGTH,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A model, of transformers or of a name and an origin of its own, and the system by which we read it."""

    system: str
    model: Callable[..., Any]
    config: Callable[..., Any]
    fields: dict[str, Any]
    origin: str = "transformers"

    def build(self) -> torch.nn.Module:
        return self.model(self.config(**self.fields))

    @property
    def tied(self) -> bool:
        return self.config(**self.fields).tie_word_embeddings


def _scaled(kind: str, **fields: Any) -> dict[str, Any]:
    """Heads of six pairs, which turn between once in 6 tokens and once in 160."""
    rope = {"rope_type": kind, "rope_theta": 50.0, **fields}
    return {"num_attention_heads": 1, "head_dim": 12, "rope_parameters": rope}


# Half of the length, so that some pairs of each scaling stay as they are, some slow down, and some lie between.
_ORIGINAL = {"factor": 2.0, "original_max_position_embeddings": LENGTH // 2}
LLAMAS = {
    "": {},
    "grouped, tied, biases": {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "rms_norm_eps": 1e-3,
    },
    "linear scaling": _scaled("linear", factor=2.5),
    "llama3 scaling": _scaled("llama3", low_freq_factor=0.1, high_freq_factor=0.6, **_ORIGINAL),
    "yarn scaling": _scaled("yarn", beta_fast=0.6, beta_slow=0.1, **_ORIGINAL),
    "yarn scaling, two gains, not truncated": _scaled(
        "yarn", beta_fast=0.6, beta_slow=0.1, mscale=1.0, mscale_all_dim=0.5, truncate=False, **_ORIGINAL
    ),
}
# Layers before number 2 are dense.
DEEPSEEK = LLAMA | {
    "first_k_dense_replace": 2,
    "num_key_value_heads": 3,
    "kv_lora_rank": 8,
    "q_lora_rank": 5,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 3,
}
_YARN = {"beta_fast": 0.6, "beta_slow": 0.1, "mscale": 0.7, "mscale_all_dim": 1.5, **_ORIGINAL}
DEEPSEEK_YARN = {"qk_rope_head_dim": 12, "rope_parameters": {"rope_type": "yarn", "rope_theta": 50.0, **_YARN}}
DEEPSEEKS = {
    "yarn scaling": DEEPSEEK_YARN | {"rms_norm_eps": 1e-3},
    "without latents of queries, tied, biases": {
        "q_lora_rank": None,
        "tie_word_embeddings": True,
        "attention_bias": True,
    },
}
MAMBA = NO_ENDS | {
    "pad_token_id": None,
    "vocab_size": VOCAB,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "state_size": 4,
}
MAMBAS = {
    "": {},
    "other sizes and biases": {
        "expand": 1,
        "conv_kernel": 2,
        "time_step_rank": 3,
        "use_bias": True,
        "use_conv_bias": False,
        "tie_word_embeddings": False,
        "layer_norm_epsilon": 1e-2,
    },
}
QWENS = {"": {"head_dim": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 100.0}}


def cases() -> Iterator[Case]:
    for what, fields in {"": {}, "exact GELU, narrow MLP": {"activation_function": "gelu", "n_inner": 20}}.items():
        yield case(what, Published("gpt2", GPT2LMHeadModel, GPT2Config, GPT2 | fields))
    for what, fields in LLAMAS.items():
        yield case(what, Published("llama", LlamaForCausalLM, LlamaConfig, LLAMA | fields))
    for what, fields in MAMBAS.items():
        yield case(what, Published("mamba", MambaForCausalLM, MambaConfig, MAMBA | fields))
    for what, fields in DEEPSEEKS.items():
        yield case(what, Published("deepseek_v2", DeepseekV2ForCausalLM, DeepseekV2Config, DEEPSEEK | fields))
    for what, fields in (DEEPSEEKS | {"halves apart": {"rope_interleave": False}}).items():
        yield case(what, Published("deepseek_v3", DeepseekV3ForCausalLM, DeepseekV3Config, DEEPSEEK | fields))
    for what, fields in QWENS.items():
        yield case(what, Published("qwen3", Qwen3ForCausalLM, Qwen3Config, LLAMA | fields))


def case(what: str, published: Published) -> Case:
    """The published model against the one that its weights are read as."""
    weights = _weights(published)
    return Case(
        tier="oracles",
        name=f"{published.origin} {published.model.__name__} {what}".strip(),
        jax=functools.partial(_jax, published, weights),
        torch=functools.cache(functools.partial(_torch, published, weights)),
    )


def _weights(published: Published) -> Arrays:
    """Random values everywhere, by the names of the published parameters."""
    rng = np.random.default_rng(1)
    shapes = {name: x.shape for name, x in published.build().named_parameters()}
    drawn = {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return {name: (x + _is_gain(name)).astype(np.float32) for name, x in drawn.items()}


def _is_gain(name: str) -> bool:
    layer, leaf = name.split(".")[-2:]
    return leaf == "weight" and (layer.startswith("ln_") or layer.endswith("norm"))


def _batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    tokens, targets = rng.integers(0, VOCAB, (2, 2, 9))
    targets[0, :2] = -100
    return {"tokens": tokens, "targets": targets}


def _jax(published: Published, weights: Arrays, dtype: DType) -> Values:
    with jax_precision(dtype):
        batch = {name: jnp.asarray(x) for name, x in _batch().items()}
        whole = {"model": cast(weights, dtype), "config": published.fields}
        config, params = interop.from_original(published.system, whole)
        config = in_dtype(config, dtype)

        def objective(params):
            logits = mhc_jax.apply(config, params, batch["tokens"]).logits_BTV
            total, count = cross_entropy(logits, batch["targets"])
            return total / count, logits

        (loss, logits), gradients = jit(jax.value_and_grad(objective, has_aux=True), dtype)(params)
        named = interop.to_original(published.system, config, gradients)
        if published.tied:
            del named[HEAD]  # listed once, under the token table
        return _values(np.asarray(logits), np.asarray(loss), named)


def _torch(published: Published, weights: Arrays, dtype: DType, sample: int) -> Values:
    with float32_is(getattr(torch, dtype)):
        module = published.build().to(getattr(torch, dtype)).eval()
        tensors = {name: torch.from_numpy(x.copy()) for name, x in cast(jitter(weights, sample), dtype).items()}
        module.load_state_dict(tensors, strict=False)  # a tied head is not listed
        batch = {name: torch.from_numpy(x) for name, x in _batch().items()}
        logits = module(batch["tokens"]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        parameters = dict(module.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    named = {name: x.numpy() for name, x in zip(parameters, gradients)}
    return _values(logits.detach().numpy(), loss.detach().numpy(), named)


def _values(logits: np.ndarray, loss: np.ndarray, gradients: Arrays) -> Values:
    return {"forward logits": logits, "forward loss": loss} | {f"gradient {name}": x for name, x in gradients.items()}
