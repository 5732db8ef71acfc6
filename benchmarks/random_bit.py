"""What cannot be known: ``python benchmarks/random_bit.py [PICTURE]``, a quarter of a minute.

Rows repeat one random bit after a first token that is always the same. Nobody can know the bit at the first place,
where the best loss is ln 2, unless the model sees what follows. Draws that loss over training, on whole rows and on
the first token alone, for the published SHC with four streams and with one, the topology ``shc``, and no streams.
"""

import math
import sys
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import mhc_jax
from mhc_jax.models import SHCOriginalConfig, with_topology
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.model import ModelConfig
from mhc_jax.ops.loss import cross_entropy

ROWS, LENGTH, BOS = 32, 8, 2
PICTURE = "benchmarks/results/random_bit.png"


def models(width: int = 32, layers: int = 2) -> dict[str, ModelConfig]:
    """The four models, of one size."""
    size = {"vocab_size": 3, "max_len": LENGTH, "width": width, "layers": layers}
    attention = AttentionConfig(heads=2, rotary="half", bias=False)
    plain = LMConfig(**size, positions="none", mixer=attention)
    original = SHCOriginalConfig(**size, heads=2, hidden=2 * width)
    return {
        "published SHC, 4 streams": original,
        "published SHC, 1 stream": original.replace(streams=1),
        "topology shc": with_topology(plain, "shc"),
        "without streams": plain,
    }


def first_losses(config: ModelConfig, steps: int) -> np.ndarray:
    """(steps, 2): the mean loss of both bits at the first place before each step, on whole rows and on prefixes."""
    adamw = optax.adamw(1e-2)
    both_B1 = jnp.array([[0], [1]])

    def loss(params, key):
        bits_B1 = jax.random.bernoulli(key, shape=(ROWS, 1)).astype(jnp.int32)
        output = mhc_jax.apply(config, params, _rows(bits_B1), key=key)
        total, count = cross_entropy(output.logits_BTV, jnp.tile(bits_B1, LENGTH))
        return total / count + sum(output.penalties.values())

    def first(params, tokens_BT):
        return cross_entropy(mhc_jax.apply(config, params, tokens_BT).logits_BTV[:, :1], both_B1)[0] / 2

    def step(carry, key):
        params, state = carry
        losses = jnp.stack([first(params, _rows(both_B1)), first(params, jnp.full((2, 1), BOS))])
        updates, state = adamw.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), losses

    params = mhc_jax.init(config, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), steps)
    return np.asarray(jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[1])((params, adamw.init(params))))


def _rows(bits_B1: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.full_like(bits_B1, BOS), jnp.tile(bits_B1, LENGTH - 1)], axis=1)


def picture(losses: Mapping[str, np.ndarray]) -> Figure:
    """One panel for each model."""
    figure = Figure(figsize=(3 * len(losses), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, both_S2) in zip(figure.subplots(1, len(losses), sharey=True), losses.items(), strict=True):
        axes.plot(both_S2[:, 0], color="#3b82c4", label="on the whole row")
        axes.plot(both_S2[:, 1], color="#e07b39", linestyle="dashed", label="on the first token alone")
        axes.axhline(math.log(2), color="#24292f", linewidth=0.8, linestyle="dotted", label="ln 2")
        axes.set(title=name, xlabel="step", yscale="log", ylim=(5e-5, 20))
        axes.label_outer()
    figure.axes[0].set_ylabel("loss of a bit nobody can know (nats)")
    figure.axes[0].legend(loc="lower left", fontsize="small")
    return figure


def main() -> None:
    losses = {name: first_losses(config, 300) for name, config in models().items()}
    for name, both_S2 in losses.items():
        print(f"{name:26s} whole row {both_S2[-1, 0]:.4f}   first token alone {both_S2[-1, 1]:.4f}")
    print(f"ln 2 {math.log(2):.4f}")
    picture(losses).savefig(sys.argv[1] if len(sys.argv) > 1 else PICTURE, dpi=120)


if __name__ == "__main__":
    main()
