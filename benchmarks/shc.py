"""What SHC keeps to, and what it costs: ``python benchmarks/shc.py``, about three minutes of one core.

Prints the singular values of all mixing matrices of a model of 48 sites at random parameters, the time of mixing
matrices, and the time of a gradient. Times are those of the process, the best of five, on one thread.
"""

import functools
import os
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import jax.numpy as jnp
import numpy as np

import mhc_jax
from mhc_jax.models import SHCOriginalConfig, with_topology
from mhc_jax.nn.channel import GeluMLPConfig, SwiGLUConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.stack import Execution
from mhc_jax.ops import projections, routing, sinkhorn

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


def bounds(floor: float, precision: str, scale: float) -> tuple[float, float, float, float]:
    """Least and largest singular value of a site, then of the product of all sites, over 256 tokens."""
    config = with_topology(DEEP, "shc")
    residual = config.residual.replace(floor=floor)
    config = config.replace(residual=residual, execution=Execution(policy=precision))
    leaves, tree = jax.tree.flatten(mhc_jax.init(config, jax.random.key(0)))
    noise = np.random.default_rng(1)
    params = jax.tree.unflatten(tree, [x + scale * noise.standard_normal(x.shape, np.float32) for x in leaves])
    tokens = jax.random.randint(jax.random.key(0), (4, 64), 0, 29)
    taps = jax.jit(lambda params: mhc_jax.apply(config, params, tokens, taps=True).taps)(params)
    sites = np.stack([taps[f"blocks.{name}.residual.h_res"] for name in ("mixer", "mlp")], 1).astype(np.float64)
    sites = sites.reshape(-1, *sites.shape[2:])
    values = np.linalg.svd(sites, compute_uv=False)
    product = np.linalg.svd(functools.reduce(lambda below, above: above @ below, sites), compute_uv=False)
    return values.min(), values.max(), product.min(), product.max()


def milliseconds(function, *arguments, repeats: int = 10) -> float:
    run = jax.jit(function)
    jax.block_until_ready(run(*arguments))
    best = np.inf
    for _ in range(5):
        start = time.process_time()
        for _ in range(repeats):
            jax.block_until_ready(run(*arguments))
        best = min(best, (time.process_time() - start) / repeats)
    return 1e3 * best


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
    for name, (make, arguments) in cases.items():
        slopes = jax.grad(lambda *x, make=make: jnp.sum(weight * make(*x)), argnums=tuple(range(len(arguments))))
        print(f"{name:24} {milliseconds(make, *arguments):8.2f} {milliseconds(slopes, *arguments):8.2f} ms")


def gradients() -> None:
    """A gradient over 4 x 256 tokens, beside the plain network's."""
    tokens = jax.random.randint(jax.random.key(0), (4, 256), 0, 1000)
    configs = {name: with_topology(WIDE, name) for name in ("plain", "mhc", "dynamic_mhc", "shc")}
    configs |= {"original": ORIGINAL, "original, one stream": ORIGINAL.replace(streams=1)}
    plain = 0.0
    for name, config in configs.items():
        params = mhc_jax.init(config, jax.random.key(0))

        def loss(params, config=config):
            logits = mhc_jax.apply(config, params, tokens, key=jax.random.key(1)).logits_BTV
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1))

        taken = milliseconds(jax.grad(loss), params, repeats=2)
        plain = plain or taken
        size = sum(x.size for x in jax.tree.leaves(params))
        print(f"{name:24} {taken:8.0f} ms {taken / plain:6.2f} {size:12,} parameters")


if __name__ == "__main__":
    for floor in (0.1, 0.0):
        for precision in ("float32", "bfloat16"):
            for scale in (0.0, 1.0, 10.0, 1000.0):
                found = " ".join(f"{x:10.3g}" for x in bounds(floor, precision, scale))
                print(f"floor {floor}, {precision}, parameters moved by {scale:6}: {found}", flush=True)
    matrices()
    gradients()
