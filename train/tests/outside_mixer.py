"""Worker of test_outside_mixer.py: a mixer that ``train`` knows nothing of, on one device and on a mesh of eight.

``python outside_mixer.py`` prints one JSON object on its last line.
"""

import dataclasses
import json

from train.tests.multi_device import Trainer, batches, distances, flat  # before JAX starts: it asks for eight devices

# isort: split

import jax
import jax.numpy as jnp

from mhc_jax.functional import param_info
from mhc_jax.nn.init import ones, uniform, zeros
from mhc_jax.nn.mixers import Mixer, MixerConfig
from mhc_jax.registry import register
from mhc_jax.summary import flops_per_token
from train.config import MeshConfig
from train.devices import sharding
from train.tests.meshes import MESHES, run_config
from train.update.optimizer import decay_mask

STEPS = 3


@register("mixer", "decaying_average")
@dataclasses.dataclass(frozen=True)
class DecayingAverageConfig(MixerConfig):
    """``y = s * (W average)``, each channel averaged with a decay of its own."""

    def build(self, width, policy, init):
        return DecayingAverage(width, init)


class DecayingAverage(Mixer):
    """The state is the average so far, (B, D)."""

    def __init__(self, width, init):
        self.A_log = init("A_log", zeros, 1, width, role="vector", axes=("decay", "channel"))
        self.W = init("W", uniform(width), width, width, role="kernel", axes=("embed", "inner"))
        self.s = init("s", ones, width)

    def init_state(self, batch, max_len):
        return jnp.zeros((batch, self.s.shape[0]))

    def __call__(self, u_BTD, state, scope):
        keep_D = jnp.exp(-jnp.exp(self.A_log[...]))[0]
        before_BD = jnp.zeros_like(u_BTD[:, 0]) if state is None else state

        def step(average_BD, u_BD):
            average_BD = keep_D * average_BD + (1 - keep_D) * u_BD
            return average_BD, average_BD

        last_BD, averages_TBD = jax.lax.scan(step, before_BD, jnp.swapaxes(scope.values(u_BTD), 0, 1))
        y_BTD = self.s[...] * (jnp.swapaxes(averages_TBD, 0, 1) @ self.W[...])
        return y_BTD, None if state is None else last_BD


def main():
    config = run_config("gpt2")
    config = config.replace(
        model=config.model.replace(mixer=DecayingAverageConfig()), train=config.train.replace(steps=STEPS)
    )
    infos = param_info(config.model)
    one = Trainer(config, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
    state, losses = one.train(batches(config))
    mesh = sharding.make_mesh(MESHES["mix"])
    eight = Trainer(config, mesh)
    sliced, sliced_losses = eight.train(batches(config))
    names = [name for name in infos if name.startswith("blocks.mixer.branch.")]
    masks = {decay: decay_mask(config.optim.replace(decay=decay), infos, state.params) for decay in ("matrices", "all")}
    specs = sharding.param_specs(infos, mesh)
    report = {
        "losses": losses,
        "sliced_losses": sliced_losses,
        "distances": distances(flat(sliced.params), flat(state.params)),
        "decayed": {decay: {name: bool(flat(mask)[name]) for name in names} for decay, mask in masks.items()},
        "specs": {name: list(specs[name]) for name in names},
        "table": sharding.table(infos, mesh),
        "flops": flops_per_token(config.model),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
