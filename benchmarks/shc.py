"""What SHC keeps to, and what it costs: ``python benchmarks/shc.py [PART ...]``, about ten minutes of one core.

- ``bounds``: singular values of all mixing matrices of a model of 48 sites at random parameters;
- ``depth``: those of the product over depth, beside mHC and HC;
- ``matrices``: the time of mixing matrices;
- ``gradients``: the time of a gradient;
- ``decoding``: bytes of the decoding state and time of a decoding step, against its length;
- ``memory``: bytes of a pass over a whole text, against its length.

Times are those of the process on one thread, medians of calls in turns.
"""

import functools
import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import jax.numpy as jnp
import numpy as np

import mhc_jax
from mhc_jax.functional import hidden, param_shapes
from mhc_jax.models import SHCOriginalConfig, with_topology
from mhc_jax.nn.channel import GeluMLPConfig, SwiGLUConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig, LatentAttentionConfig, SelectiveSSMConfig
from mhc_jax.nn.stack import Execution
from mhc_jax.ops import projections, routing, sinkhorn
from train.measure import parts
from train.measure.turns import take_turns

DEEP = LMConfig(
    vocab_size=29, max_len=64, width=16, layers=24, mixer=AttentionConfig(heads=2), mlp=GeluMLPConfig(hidden=8)
)
WIDE = LMConfig(
    vocab_size=1000,
    max_len=256,
    width=256,
    layers=4,
    positions="none",
    mixer=AttentionConfig(heads=4, rotary="half", bias=False),
    mlp=SwiGLUConfig(),
)
ORIGINAL = SHCOriginalConfig(vocab_size=1000, max_len=256, width=256, layers=4, heads=4)
TOKENS = 4096
LENGTHS = (256, 512, 1024, 2048, 4096)
STUDENT = WIDE.replace(mixer=SelectiveSSMConfig(init="original"), mlp=None, layers=8)


def matrices_of(config: LMConfig, scale: float) -> np.ndarray:
    """H_res of every site and token, (S, 256, N, N), at parameters moved by normal numbers."""
    leaves, tree = jax.tree.flatten(mhc_jax.init(config, jax.random.key(0)))
    noise = np.random.default_rng(1)
    params = jax.tree.unflatten(tree, [x + scale * noise.standard_normal(x.shape, np.float32) for x in leaves])
    tokens = jax.random.randint(jax.random.key(0), (4, 64), 0, 29)
    taps = jax.jit(lambda params: mhc_jax.apply(config, params, tokens, taps=True).taps)(params)
    sites = np.stack([taps[f"blocks.{name}.residual.h_res"] for name in ("mixer", "mlp")], 1).astype(np.float64)
    return sites.reshape(len(sites) * 2, -1, *sites.shape[-2:])


def products(sites: np.ndarray) -> list[np.ndarray]:
    """Of the matrices of the first site, the first two, ... and all."""
    return list(itertools.accumulate(sites, lambda below, above: above @ below))


def extremes(matrices: np.ndarray) -> tuple[float, float]:
    """Least and largest singular value."""
    values = np.linalg.svd(matrices, compute_uv=False)
    return values.min(), values.max()


def bounds() -> None:
    """Extremes of a site, then of the product of all sites, with and without a floor."""
    for floor in (0.1, 0.0):
        for precision in ("float32", "bfloat16"):
            for scale in (0.0, 1.0, 10.0, 1000.0):
                config = with_topology(DEEP, "shc").replace(execution=Execution(policy=precision))
                sites = matrices_of(config.replace(residual=config.residual.replace(floor=floor)), scale)
                found = " ".join(f"{x:10.3g}" for x in (*extremes(sites), *extremes(products(sites)[-1])))
                print(f"floor {floor}, {precision}, parameters moved by {scale:6}: {found}", flush=True)


def depth() -> None:
    """Least and largest singular value of the product of the first 2, 8, 24 and 48 sites."""
    for precision in ("float32", "bfloat16"):
        for scale in (0.0, 0.3, 1.0):
            for name in ("shc", "mhc", "dynamic_mhc", "hc"):
                config = with_topology(DEEP, name).replace(execution=Execution(policy=precision))
                over_depth = products(matrices_of(config, scale))
                found = "  ".join("{:8.2g} {:8.4g}".format(*extremes(over_depth[n - 1])) for n in (2, 8, 24, 48))
                print(f"{name:12} {precision:9} moved by {scale}: {found}", flush=True)


def milliseconds(cases: dict[str, Callable[[], object]], *, rounds: int = 9, calls: int = 5) -> dict[str, float]:
    """Median time of the process for a call of each."""
    for call in cases.values():
        call()
    timed = take_turns(cases, rounds=rounds, calls=calls, clock=time.process_time)
    return {name: 1e3 * float(np.median(np.concatenate(found))) for name, found in timed.items()}


def call(function: Callable, *arguments: Any) -> Callable[[], object]:
    """A call of the compiled function that waits for its result."""
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


def matrices() -> None:
    """Mixing matrices of every token, four streams, and their derivative by all that makes them."""
    draw = functools.partial(jax.random.normal, jax.random.key(0))
    weight = draw((TOKENS, 4, 4))

    def shc(skew, logits):
        mixed = projections.mixture(routing.top_k_softmax(logits, k=2), projections.spread_rotations(skew, size=4))
        return projections.identity_mix(mixed, jnp.asarray(0.05))

    cases = {
        "SHC, two of four": (shc, (draw((4, 6)), draw((TOKENS, 4)))),
        "Sinkhorn, 20": (functools.partial(sinkhorn.log_sinkhorn_columns_then_rows, iters=20), (weight,)),
        "Sinkhorn, 20, implicit": (functools.partial(sinkhorn.implicit_sinkhorn, iters=20), (weight,)),
    }
    calls = {}
    for name, (make, arguments) in cases.items():
        slopes = jax.grad(lambda *x, make=make: jnp.sum(weight * make(*x)), argnums=tuple(range(len(arguments))))
        calls |= {f"{name}, forward": call(make, *arguments), f"{name}, derivative": call(slopes, *arguments)}
    for name, taken in milliseconds(calls).items():
        print(f"{name:36} {taken:8.2f} ms, {1e6 * taken / TOKENS:6.0f} ns a token and site")


def gradients() -> None:
    """A gradient over 4 x 256 tokens, beside the plain network's."""
    tokens = jax.random.randint(jax.random.key(0), (4, 256), 0, 1000)
    configs = {name: with_topology(WIDE, name) for name in ("plain", "mhc", "dynamic_mhc", "shc")}
    configs |= {"original": ORIGINAL, "original, one stream": ORIGINAL.replace(streams=1)}
    calls, sizes = {}, {}
    for name, config in configs.items():
        params = mhc_jax.init(config, jax.random.key(0))

        def loss(params, config=config):
            logits = mhc_jax.apply(config, params, tokens, key=jax.random.key(1)).logits_BTV
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1))

        calls[name], sizes[name] = call(jax.grad(loss), params), sum(x.size for x in jax.tree.leaves(params))
    taken = milliseconds(calls, rounds=5, calls=2)
    for name, size in sizes.items():
        print(f"{name:24} {taken[name]:8.0f} ms {taken[name] / taken['plain']:6.2f} {size:12,} parameters")


def decoding() -> None:
    """Bytes of the state and time of a step, at every length, of models of four layers of width 256."""
    models = {name: with_topology(WIDE, name) for name in ("plain", "mhc", "dynamic_mhc", "shc")}
    models |= {"original, one stream": ORIGINAL.replace(streams=1), "student": STUDENT}
    models["latent attention"] = WIDE.replace(mixer=LatentAttentionConfig(heads=4))
    for name, model in models.items():
        params = mhc_jax.init(model, jax.random.key(0))
        steps = {str(length): parts.whole_decoding(model, params, length) for length in LENGTHS}
        taken = milliseconds(steps, rounds=9, calls=10)
        row = "  ".join(f"{parts.state_bytes(model, n) / 1024:7,.0f} KiB {taken[str(n)]:6.2f} ms" for n in LENGTHS)
        print(f"{name:20} {row}", flush=True)


def memory() -> None:
    """Bytes of temporaries of a pass over one row of each length without its gradient, and with it."""
    for name, model in {"plain": WIDE, "student": STUDENT}.items():
        for length in LENGTHS:
            longer = model.replace(max_len=length)
            tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

            def total(params, tokens, longer=longer):
                return jnp.sum(hidden(longer, params, tokens).hidden_BTD)

            found = []
            for function in (total, jax.grad(total)):
                compiled = jax.jit(function).lower(param_shapes(longer), tokens).compile()
                found.append(compiled.memory_analysis().temp_size_in_bytes / 2**20)
            print(f"{name:8} {length:5} tokens: {found[0]:8.1f} MiB, with its gradient {found[1]:8.1f} MiB", flush=True)


PARTS = {part.__name__: part for part in (bounds, depth, matrices, gradients, decoding, memory)}

if __name__ == "__main__":
    for name in sys.argv[1:] or PARTS:
        print(f"{name}: {PARTS[name].__doc__}", flush=True)
        PARTS[name]()
