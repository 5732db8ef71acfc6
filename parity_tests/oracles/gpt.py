"""GPT-2 in Hugging Face transformers: logits, loss, and the gradient of every parameter."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import mhc_jax
from mhc_jax import interop
from mhc_jax.ops.loss import cross_entropy
from parity_tests.compare import Case, DType, Values
from parity_tests.frameworks import Arrays, cast, jax_precision, jit, jitter
from parity_tests.taps import in_dtype

SIZES = {"vocab_size": 13, "n_positions": 9, "n_embd": 12, "n_layer": 2, "n_head": 3}
VARIANTS = {"": {}, "exact GELU, narrow MLP": {"activation_function": "gelu", "n_inner": 20}}
HEAD = "lm_head.weight"


def cases() -> Iterator[Case]:
    for what, changes in VARIANTS.items():
        fields = {**SIZES, "bos_token_id": None, "eos_token_id": None, **changes}
        weights = _weights(fields)
        yield Case(
            tier="oracles",
            name=f"transformers GPT2LMHeadModel {what}".strip(),
            jax=functools.partial(_jax, fields, weights),
            torch=functools.cache(functools.partial(_torch, fields, weights)),
        )


def _weights(fields: dict) -> Arrays:
    """Random values everywhere, by the names of the published parameters."""
    rng = np.random.default_rng(1)
    shapes = {name: x.shape for name, x in GPT2LMHeadModel(GPT2Config(**fields)).named_parameters()}
    drawn = {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return {name: (x + (".ln_" in name and name.endswith("weight"))).astype(np.float32) for name, x in drawn.items()}


def _batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    tokens, targets = rng.integers(0, SIZES["vocab_size"], (2, 2, 7))
    targets[0, :2] = -100
    return {"tokens": tokens, "targets": targets}


def _jax(fields: dict, weights: Arrays, dtype: DType) -> Values:
    with jax_precision(dtype):
        batch = {name: jnp.asarray(x) for name, x in _batch().items()}
        config, params = interop.from_original("gpt2", {"model": cast(weights, dtype), "config": fields})
        config = in_dtype(config, dtype)

        def objective(params):
            logits = mhc_jax.apply(config, params, batch["tokens"]).logits_BTV
            total, count = cross_entropy(logits, batch["targets"])
            return total / count, logits

        (loss, logits), gradients = jit(jax.value_and_grad(objective, has_aux=True), dtype)(params)
        named = interop.to_original("gpt2", config, gradients)
        del named[HEAD]  # of the tied matrix: listed once, under the token table
        return _values(np.asarray(logits), np.asarray(loss), named)


def _torch(fields: dict, weights: Arrays, dtype: DType, sample: int) -> Values:
    module = GPT2LMHeadModel(GPT2Config(**fields)).to(getattr(torch, dtype)).eval()
    tensors = {name: torch.from_numpy(x.copy()) for name, x in cast(jitter(weights, sample), dtype).items()}
    module.load_state_dict(tensors, strict=False)  # the tied head is not listed
    batch = {name: torch.from_numpy(x) for name, x in _batch().items()}
    logits = module(batch["tokens"]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    named = {name: x.numpy() for name, x in zip(parameters, gradients)}
    return _values(logits.detach().numpy(), loss.detach().numpy(), named)


def _values(logits: np.ndarray, loss: np.ndarray, gradients: Arrays) -> Values:
    return {"forward logits": logits, "forward loss": loss} | {f"gradient {name}": x for name, x in gradients.items()}
