"""Worker of test_outside_mixer.py: a mixer that ``train`` knows nothing of, on one device and on a mesh of eight.

``python outside_mixer.py`` prints one JSON object on its last line.
"""

import json

from train.tests.multi_device import Trainer, batches, distances, flat  # before JAX starts: it asks for eight devices

# isort: split

import decaying_average  # of examples/
import jax

from mhc_jax.accounting import flops_per_token
from mhc_jax.functional import param_info
from train.config import MeshConfig
from train.devices import sharding
from train.tests.meshes import MESHES, run_config
from train.update.optimizer import decay_mask

STEPS = 3


def main():
    config = run_config("gpt2")
    config = config.replace(
        model=config.model.replace(mixer=decaying_average.DecayingAverageConfig()),
        train=config.train.replace(steps=STEPS),
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
