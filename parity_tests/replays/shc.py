"""Replays the original SHC's own numbers in JAX; works without PyTorch.

Parameters come from a deterministic fill: of whole models by the original's names, through ``interop.from_original``.
The numbers are the original's in float64.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import mhc_jax
from mhc_jax import interop
from mhc_jax.functional import bind, param_shapes
from mhc_jax.models.shc_original import FactorizedCode, RankSelector, SequenceMixture, SHCOriginalConfig
from mhc_jax.nn.channel import MoEConfig, SwiGLUConfig
from mhc_jax.nn.init import Init
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.scope import Scope
from mhc_jax.nn.stack import layer_of
from mhc_jax.nn.taps import Taps
from mhc_jax.ops import streams
from mhc_jax.ops.attention import causal_attention
from mhc_jax.ops.loss import IGNORE, cross_entropy
from mhc_jax.ops.norm import rms_norm
from mhc_jax.ops.projections import cayley_transform
from mhc_jax.ops.rotary import rotate
from mhc_jax.ops.streams import Streams
from mhc_jax.precision import policy
from parity_tests.compare import Row
from parity_tests.replays import base
from parity_tests.replays.base import row, summary

SYSTEM, VOCAB, PROMPT = "shc", 29, 3
FLOAT32 = policy("float32")
Shapes = Mapping[str, tuple[int, ...]]

# Whole models (two layers of width 16) and single blocks of the original.
SMALL = SHCOriginalConfig(vocab_size=VOCAB, max_len=16, width=16, layers=2, heads=4, hidden=24)
MODELS = {"lm_n4": SMALL, "lm_bypass": SMALL.replace(streams=1), "lm_untied": SMALL.replace(tied=False)}
BLOCKS = {
    "block_n4": SMALL,
    "block_n2k1r2": SMALL.replace(streams=2, components=1, rank=2),
    "block_bypass": SMALL.replace(streams=1),
    "block_norope_manual": SMALL.replace(rotary=False),
}


def mixed(count: int, j: int) -> np.ndarray:
    """The finaliser of MurmurHash3 on ``i + 1 + 1000003 j``."""
    h = (np.arange(1, count + 1, dtype=np.uint64) + 1000003 * j).astype(np.uint32)
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def fill(shape: tuple[int, ...], j: int, scale: float = 1.0) -> np.ndarray:
    """Numbers from -scale to scale, in float64."""
    return (scale * (mixed(int(np.prod(shape)), j) / 2**31 - 1)).reshape(shape)


def ids(shape: tuple[int, ...], j: int, vocab: int) -> np.ndarray:
    """Token ids."""
    return (mixed(int(np.prod(shape)), j) % vocab).astype(np.int32).reshape(shape)


def filled(shapes: Shapes, scale: float = 0.3) -> dict[str, np.ndarray]:
    """The fill of named parameters, in the order of their names; gains of the block's norms are near 1."""
    found = {}
    for index, name in enumerate(sorted(shapes), start=1):
        *_, owner, leaf = ("", *name.split("."))
        gain = leaf == "weight" and (owner.startswith("ln_") or owner in ("norm", "final_norm"))
        value = fill(shapes[name], index, scale)
        found[name] = (1 + value * 0.1 / scale if gain else value).astype(np.float32)
    return found


def published_shapes(config: SHCOriginalConfig) -> dict[str, tuple[int, ...]]:
    """The parameters of the original by name."""
    hollow = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), param_shapes(config))
    shapes = {name: x.shape for name, x in interop.to_original(SYSTEM, config, hollow).items()}
    constants = ("cos_cached", "sin_cached", "inv_freq", "triu_row", "triu_col")
    tied = {"lm_head.weight"} if config.tied else set()
    return {name: shape for name, shape in shapes.items() if not name.endswith(constants) and name not in tied}


def loaded(config: SHCOriginalConfig, weights: Mapping[str, np.ndarray]) -> tuple[SHCOriginalConfig, Any]:
    """The model that a checkpoint with these weights holds."""
    hints = {"n_heads": config.heads, "max_seq_len": config.max_len, "dropout": 0.0, "use_rope": config.rotary}
    return interop.from_original(SYSTEM, weights, **hints)


def replay(name: str) -> list[Row]:
    """Logits, loss, the norm of every gradient, sizes and continuations of one model."""
    told, config = summary(SYSTEM)[name], MODELS[name]
    shapes = published_shapes(config)
    config, params = loaded(config, filled(shapes))
    tokens = np.asarray(told["ids"])
    labels = tokens.copy()
    labels[0, 2] = IGNORE

    def objective(params):
        logits_BTV = mhc_jax.apply(config, params, jnp.asarray(tokens)).logits_BTV
        total, count = cross_entropy(logits_BTV[:, :-1], jnp.asarray(labels[:, 1:]))
        return total / count, logits_BTV

    (loss, logits), found = base.compiled(jax.value_and_grad(objective, has_aux=True))(params)
    found = interop.to_original(SYSTEM, config, found)
    sizes = sum(x.size for x in jax.tree.leaves(params))
    rows = [
        row(name, "names", sorted(shapes) == told["sorted_param_names"], True),
        row(name, "sizes", [sizes - VOCAB * config.width, sizes], told["num_params"]),
        row(name, "logits of the first row", logits[0], told["logits[0]"]),
        row(name, "logits at the end", logits[1, -1], told["logits[1,-1]"]),
        row(name, "loss", loss, told["loss"]),
    ]
    for tensor, norm in told["grad_norms"].items():
        # The smallest are sums that cancel: of weights of rotations that hardly differ.
        rows.append(row(name, f"gradient {tensor}", np.linalg.norm(found[tensor]), norm or 0.0, least=0.01))
    return rows + list(_continuations(name, config, params, tokens[:, :PROMPT], told))


def _continuations(name, config, params, prompt, told) -> Iterator[Row]:
    """Greedy ones: as published, where a new token sees nothing but itself, and the last token of the whole text."""
    forward = base.compiled(lambda params, tokens: mhc_jax.apply(config, params, tokens).logits_BTV[:, -1])

    def continued(tokens, count, pick):
        for _ in range(count):
            seen = tokens if tokens.shape[1] == PROMPT else tokens[:, -1:]
            tokens = np.concatenate([tokens, np.asarray(pick(forward(params, seen)))[:, None]], axis=1)
        return tokens

    def greedy(logits):
        return jnp.argmax(logits, axis=-1)

    def divided_by_zero(logits):
        return jnp.argmax(logits > 0, axis=-1)

    yield row(name, "greedy, as published", continued(prompt, 8, greedy), told["generate_greedy_8"])
    yield row(name, "temperature 0", continued(prompt, 3, divided_by_zero), told["generate_T0"])
    whole = np.asarray(told["full_recompute_greedy_8"])
    yield row(name, "greedy, whole text", greedy(forward(params, whole[:, :-1])), whole[:, -1])


def replay_blocks() -> list[Row]:
    """One block: its output, the code of its streams, and the norms of mixing matrices of the raw expansion."""
    return [row for name, config in BLOCKS.items() for row in _judged(name, lambda n=name, c=config: _block(n, c))]


def _block(name: str, config: SHCOriginalConfig) -> Iterator[tuple[str, Any, Any]]:
    told, config = summary(SYSTEM)[name], config.replace(layers=1)
    shapes, prefix = published_shapes(config), "layers.0."
    inside = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
    weights = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
    config, params = loaded(config, weights | {prefix + n: x for n, x in filled(inside).items()})
    block = layer_of(bind(config, params).blocks, 0)
    x = jnp.asarray(fill((2, 5, 16), 60), jnp.float32)
    out, _ = block(x, None, Scope.over(5, taps=(taps := Taps())))
    yield "output", out, told["out"]
    yield "streams", config.streams, told["n_eff"]
    if told["compressed"] is not None:
        yield "code", taps.values["code"], told["compressed"]
    for route, norms in told.get("routing_stats", {}).items():
        if route != "effective_rank":
            pooled = streams.split_streams(block.expand(x), config.streams).total().mean(1) / config.streams
            yield f"norm of H_{route}", _norm(getattr(block.routing, route)(pooled)), norms


def _norm(matrix):
    return jnp.linalg.svd(matrix, compute_uv=False)[..., 0]


def replay_units() -> list[Row]:
    """Every layer on its own."""
    told = summary(SYSTEM)
    groups = (_fills, _cayley, _mixture, _code, _selector, _attention, _perceptrons)
    return [row for group in groups for row in _judged("units", lambda group=group: group(told))]


def _judged(case: str, triples: Callable[[], Iterator[tuple[str, Any, Any]]]) -> list[Row]:
    """The rows of (tap, ours, golden), computed by one program."""
    kept: list[tuple[str, Any]] = []

    def values():
        found = list(triples())
        kept[:] = [(tap, golden) for tap, _, golden in found]
        return [jnp.asarray(x) for _, x, _ in found]

    found = base.compiled(values)()
    return [row(case, tap, x, golden) for (tap, golden), x in zip(kept, found, strict=True)]


def _fills(told):
    check = told["fill_check"]
    yield "fill", [fill((6,), 0)], [check["fill((6,),0,1)"]]
    yield "fill, scaled", fill((2, 2), 3, 0.5), check["fill((2,2),3,0.5)"]
    x, scale = (jnp.asarray(fill(*how), jnp.float32) for how in (((2, 6), 90), ((6,), 1, 0.3)))
    yield "RMSNorm", rms_norm(x, scale), told["rms"]
    yield "ids", ids((2, 6), 7, VOCAB), check["ids((2,6),7,29)"]


def _cayley(told):
    for size in range(1, 6):
        entries = jnp.asarray(fill((size * (size - 1) // 2,), 1, 1.5), jnp.float32)
        yield f"Cayley transform of {size}", cayley_transform(entries, size=size), told[f"cayley_n{size}"]["Q"]
    entries = jnp.asarray(fill((3, 6), 2, 1.5), jnp.float32)
    yield "Cayley transforms", cayley_transform(entries, size=4), told["batched_cayley"]["Q"]


def _built(module: nnx.Module, params: Any) -> Any:
    nnx.update(module, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params))
    return module


def _mixture(told):
    golden, init = told["mixture"], Init(jax.random.key(0))
    weights = filled({"cayley.params": (3, 6), "mixing_proj.bias": (3,), "mixing_proj.weight": (3, 8)}, 1.0)
    proj = {"kernel": weights["mixing_proj.weight"].T, "bias": weights["mixing_proj.bias"]}
    module = _built(SequenceMixture(4, 3, 8, FLOAT32, init), {"skew": weights["cayley.params"], "proj": proj})
    x = jnp.asarray(fill((2, 5, 8), 50), jnp.float32)
    alpha, h = module.weights(x.mean(1)), module(x.mean(1))
    yield "weights of a mixture", alpha, golden["alpha"]
    yield "mixture", h, golden["H"]
    yield "weights, cold", module.weights(x[:, 0], 0.25), golden["alpha_T0.25_x[:,0]"]
    yield "norm of the mixture", _norm(h), golden["sigma_max"]
    yield "entropy of the weights", -jnp.sum(alpha * jnp.log(alpha + 1e-10), -1), golden["entropy"]
    yield "largest weight", alpha.max(-1), golden["max_alpha"]
    mixed_streams = streams.mix(_streams(fill((2, 4, 8), 51)), h).stack()
    yield "streams mixed", mixed_streams, golden["apply x_bar=fill((2,4,8),51,1)"]


def _streams(x) -> Streams:
    return Streams.unstack(jnp.asarray(x, jnp.float32))


def _code(told):
    x = fill((2, 4, 6), 52)
    for rank in (1, 2):
        golden, init = told[f"fkv_r{rank}"], Init(jax.random.key(0))
        module = _built(FactorizedCode(4, 6, rank, init), filled({"U": (4, rank), "V": (6, rank)}, 0.5))
        code = module(_streams(x))
        again = module.decode(code).stack()
        yield f"code of {rank}", code, golden["u"]
        yield f"streams of a code of {rank}", again, golden["xhat"]
        yield f"error of a code of {rank}", jnp.linalg.norm(x - again) / np.linalg.norm(x), golden["err"]
        whole, kept = 4 * 6 * 10, rank * 10 + 6 * rank
        counted = [whole, kept, whole / kept, 100 * (1 - kept / whole)]
        yield f"sizes with a code of {rank}", counted, list(golden["stats_L10"].values())
    weights = filled({"expand_proj.weight": (24, 6), "expand_proj.bias": (24,)}, 0.5)
    token = jnp.asarray(fill((1, 2, 6), 54), jnp.float32)
    expanded = streams.split_streams(token @ weights["expand_proj.weight"].T + weights["expand_proj.bias"], 4).stack()
    yield "expanded streams", expanded, told["expander"]["n4"]
    yield "the first two", expanded[..., :2, :], told["expander"]["n2"]


def _selector(told):
    shapes = {"layer_bias": (4,)}
    for index, (outputs, inputs) in ((0, (2, 8)), (2, (4, 2))):
        shapes |= {f"rank_proj.{index}.weight": (outputs, inputs), f"rank_proj.{index}.bias": (outputs,)}
    weights, golden = filled(shapes, 1.0), told["rank_selector"]
    dense = {
        name: {"kernel": weights[f"rank_proj.{index}.weight"].T, "bias": weights[f"rank_proj.{index}.bias"]}
        for name, index in (("in_proj", 0), ("out_proj", 2))
    }
    selector = RankSelector(8, 4, FLOAT32, Init(jax.random.key(0)))
    module = _built(selector, {"layer_bias": weights["layer_bias"], **dense})
    x = jnp.asarray(fill((3, 5, 8), 53), jnp.float32)
    logits = module.logits(x)
    yield "logits of the rank", logits, golden["logits"]
    yield "its distribution", jax.nn.softmax(logits), golden["dist"]
    yield "the likeliest", jnp.argmax(logits, -1) + 1, golden["hard"]
    selected = [module(x[i : i + 1], Scope.over(5)) for i in range(3)]
    yield "the rank of each row", selected, golden["n_eff_eval"]


def _branch(config: Any, params: Any) -> Any:
    return _built(config.build(16, FLOAT32, Init(jax.random.key(0))), params)


def _attention(told):
    x = jnp.asarray(fill((2, 5, 16), 60), jnp.float32)
    for name, kv_heads in (("mha", 4), ("gqa", 2)):
        wide = {"q_proj.weight": (16, 16), "o_proj.weight": (16, 16)}
        weights = filled(wide | {f"{part}_proj.weight": (4 * kv_heads, 16) for part in "kv"})
        kernels = {f"{part}_proj": {"kernel": weights[f"{part}_proj.weight"].T} for part in "qkv"}
        kernels["out_proj"] = {"kernel": weights["o_proj.weight"].T}
        config = AttentionConfig(heads=4, kv_heads=kv_heads, rotary="half", bias=False)
        yield name, _branch(config, kernels)(x, None, Scope.over(5))[0], told[name]["out"]
        if name == "mha":
            both_ways = _branch(config.replace(causal=False), kernels)(x, None, Scope.over(5))[0]
            yield "mha, both ways", both_ways, told[name]["noncausal"]
            yield from _quirks(x, kernels, told[name])


def _quirks(x, kernels, golden):
    """After a cache the original hides nothing and counts positions from 0; an additive mask scales probabilities."""
    q, k, v = ((x @ kernels[f"{part}_proj"]["kernel"]).reshape(2, 5, 4, 4) for part in "qkv")
    q, k = (rotate(part, jnp.arange(5)[None], layout="half") for part in (q, k))
    before_k, before_v = (jnp.asarray(fill((2, 4, 3, 4), j), jnp.float32).swapaxes(1, 2) for j in (61, 62))

    def out(y):
        return y.reshape(*y.shape[:2], -1) @ kernels["out_proj"]["kernel"]

    def cached(count):
        keys, values = (jnp.concatenate([old, new[:, :count]], 1) for old, new in ((before_k, k), (before_v, v)))
        return out(causal_attention(q[:, :count], keys, values, start=3, causal=False))

    yield "mha after a cache", cached(5), golden["out_with_cache"]
    yield "its cache", (2, 4, 3 + 5, 4), golden["new_cache_k_shape"]
    yield "mha, one token after a cache", cached(1), golden["out_1tok_with_cache"]
    scale = jnp.exp(jnp.asarray(fill((2, 1, 5, 5), 63), jnp.float32))
    scaled, total = (causal_attention(q, k, z, keep_BHTS=scale) for z in (v, jnp.ones_like(v)))
    yield "mha with an additive mask", out(scaled / total), golden["manual_additive_mask_fill63"]


def _perceptrons(told):
    x, ffn = jnp.asarray(fill((2, 5, 16), 60), jnp.float32), SwiGLUConfig(hidden=24)
    ours = {"w_gate": "gate_proj", "w_up": "up_proj", "w_down": "down_proj"}
    shapes = {f"{name}.weight": (16, 24) if name == "w_down" else (24, 16) for name in ours}
    kernels = {name: {"kernel": filled(shapes)[f"{theirs}.weight"].T} for theirs, name in ours.items()}
    yield "ffn", _branch(ffn, kernels)(x, Scope.over(5))[0, 0], told["ffn"]["out0"]
    weights = filled(
        {f"experts.{e}.{name}": s for e in range(4) for name, s in shapes.items()} | {"router.weight": (4, 16)}
    )
    stacked = {name: np.stack([weights[f"experts.{e}.{w}.weight"].T for e in range(4)]) for w, name in ours.items()}
    stacked["router"] = {"kernel": weights["router.weight"].T}
    moe = _branch(MoEConfig(experts=4, hidden=24), stacked)
    yield "moe", moe(x, Scope.over(5))[0], told["moe"]["out0"]
    gate = {"gate.0.weight": (4, 16), "gate.0.bias": (4,), "gate.2.weight": (1, 4), "gate.2.bias": (1,)}
    weights = filled(gate | {f"ffn.{name}": shape for name, shape in shapes.items()})
    kernels = {name: {"kernel": weights[f"ffn.{theirs}.weight"].T} for theirs, name in ours.items()}
    hidden = jax.nn.gelu(x @ weights["gate.0.weight"].T + weights["gate.0.bias"], approximate=False)
    gate = jax.nn.sigmoid(hidden @ weights["gate.2.weight"].T + weights["gate.2.bias"])
    yield "gated ffn", (gate * _branch(ffn, kernels)(x, Scope.over(5)))[0, 0], told["gated_ffn"]["out0"]


def rows() -> list[Row]:
    """All golden numbers of the transformer."""
    return [row for name in MODELS for row in replay(name)] + replay_blocks() + replay_units()
