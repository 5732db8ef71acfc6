"""TransformerScan beside GPT-2 of Hugging Face transformers: a text of one chunk, and the blocks of an aggregator.

The blocks see both ways under eager attention without a mask.
"""

import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

import mhc_jax
from mhc_jax import interop
from parity_tests.compare import Case, DType, Values
from parity_tests.frameworks import Arrays, cast, jax_precision, jit, jitter
from parity_tests.oracles.modules import float32_is
from parity_tests.taps import in_dtype

VOCAB, WIDTH, HEADS, CHUNK = 13, 12, 3, 4
NO_DROPOUT = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
FIELDS = NO_DROPOUT | {"vocab_size": VOCAB, "n_positions": 2 * CHUNK, "n_embd": WIDTH, "n_head": HEADS}
NO_ENDS = {"bos_token_id": None, "eos_token_id": None}


def cases() -> Iterator[Case]:
    for name, jax_part, torch_part in (
        ("transformers GPT2LMHeadModel, one chunk of a scan", _one_chunk, _gpt2),
        ("transformers GPT2Block, two summaries merged", _merged, _blocks),
    ):
        yield Case(tier="oracles", name=name, jax=jax_part, torch=functools.cache(torch_part))


def _published_config() -> GPT2Config:
    fields = {"n_layer": 2, "tie_word_embeddings": False, "_attn_implementation": "eager"}
    return GPT2Config(**FIELDS, **NO_ENDS, **fields)


@functools.cache
def _weights() -> Arrays:
    """Under the names of TransformerScan's checkpoints: two blocks of either network."""
    shapes = {name: x.shape for name, x in GPT2LMHeadModel(_published_config()).named_parameters()}
    reader = {_scan_name(name): shape for name, shape in shapes.items()}
    aggregator = {name.replace("T2.", "T1."): shape for name, shape in reader.items() if name.startswith("T2.")}
    rng = np.random.default_rng(1)
    drawn = {name: 0.3 * rng.standard_normal(shape) for name, shape in (reader | aggregator).items()}
    gains = re.compile(r".*\.ln_\w+\.weight")
    return {name: (x + bool(gains.fullmatch(name))).astype(np.float32) for name, x in drawn.items()}


def _scan_name(name: str) -> str:
    name = name.replace("lm_head.", "T2_head.").replace("transformer.h.", "T2.blocks.")
    return name.replace("transformer.ln_f.", "T2.ln_f.").replace("transformer.", "T0.")


def _tokens() -> np.ndarray:
    return np.random.default_rng(2).integers(0, VOCAB, (2, 2 * CHUNK))


def _read(dtype: DType, **hints):
    given = {**NO_DROPOUT, "n_head": HEADS, "causal_aggregator": False, **hints}
    config, params = interop.from_original("transformer_scan", cast(_weights(), dtype), **given)
    return in_dtype(config, dtype), params


def _one_chunk(dtype: DType) -> Values:
    with jax_precision(dtype):
        config, params = _read(dtype, chunk_size=2 * CHUNK)
        config = config.replace(boundary="token")

        def objective(params):
            logits = mhc_jax.apply(config, params, jnp.asarray(_tokens())).logits_BTV
            return jnp.sum(jnp.sin(logits)), logits

        gradients, logits = jit(jax.grad(objective, has_aux=True), dtype)(params)
        named = interop.to_original("transformer_scan", config, gradients)
    named = {f"gradient {name}": x for name, x in named.items() if not name.startswith("T1.")}
    return {"forward logits": np.asarray(logits)} | named


def _gpt2(dtype: DType, sample: int) -> Values:
    with float32_is(getattr(torch, dtype)):
        module = GPT2LMHeadModel(_published_config()).to(getattr(torch, dtype)).eval()
        weights = cast(jitter(_weights(), sample), dtype)
        tensors = {name: torch.from_numpy(weights[_scan_name(name)].copy()) for name in dict(module.named_parameters())}
        module.load_state_dict(tensors, strict=True)
        logits = module(torch.from_numpy(_tokens())).logits
        parameters = dict(module.named_parameters())
        gradients = torch.autograd.grad(logits.sin().sum(), list(parameters.values()))
    named = {f"gradient {_scan_name(name)}": x.numpy() for name, x in zip(parameters, gradients)}
    return {"forward logits": logits.detach().numpy()} | named


def _merged(dtype: DType) -> Values:
    """What stands in front of the third chunk, and what of that the embeddings make."""
    with jax_precision(dtype):
        published, params = _read(dtype, chunk_size=CHUNK)
        config = published.replace(boundary="prefix", positions="absolute")

        def objective(params):
            taps = mhc_jax.apply(config, params, jnp.asarray(_tokens()), taps=True).taps
            return jnp.sum(jnp.sin(taps["prefixes"][:, 2])), taps["prefixes"][:, 2]

        gradients, merged = jit(jax.grad(objective, has_aux=True), dtype)(params)
        named = interop.to_original("transformer_scan", published, gradients)
    named = {f"gradient {name}": x for name, x in named.items() if name.startswith("T1.")}
    return {"forward merged": np.asarray(merged)} | named


def _blocks(dtype: DType, sample: int) -> Values:
    with float32_is(getattr(torch, dtype)):
        weights = {name: torch.from_numpy(x.copy()) for name, x in cast(jitter(_weights(), sample), dtype).items()}
        config = _published_config()
        blocks, norm = [GPT2Block(config, i) for i in range(2)], torch.nn.LayerNorm(WIDTH, eps=1e-5)
        module = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList(blocks), "ln_f": norm})
        module = module.to(getattr(torch, dtype)).eval()
        module.load_state_dict({n.removeprefix("T1."): x for n, x in weights.items() if n.startswith("T1.")})
        h = weights["T0.wte.weight"][torch.from_numpy(_tokens())] + weights["T0.wpe.weight"]
        for block in blocks:
            h = block(h, attention_mask=None)
            h = h[0] if isinstance(h, tuple) else h
        merged = norm(h)[:, CHUNK:]
        parameters = dict(module.named_parameters())
        gradients = torch.autograd.grad(merged.sin().sum(), list(parameters.values()))
    named = {f"gradient T1.{name}": x.numpy() for name, x in zip(parameters, gradients)}
    return {"forward merged": merged.detach().numpy()} | named
