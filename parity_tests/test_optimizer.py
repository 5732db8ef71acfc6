"""AdamW, update by update, and what its weight decay acts on."""

import jax
import numpy as np
import pytest

from mhc_jax import interop, registry
from mhc_jax.functional import param_info, param_shapes
from parity_tests import matrix
from parity_tests.checks import check, of_tier
from parity_tests.taps import build_twin
from torch_ref.train import decayed
from train.config import OptimConfig
from train.update.optimizer import decay_mask


@of_tier("optimizer", slow=lambda name: name in ("muon, original scale", "no clipping, strong decay"))
def test_optimizer(case):
    check(case)


PARTS = [(axis, name) for axis in ("topology", "mixer", "channel") for name in registry.names(axis)]


@pytest.mark.parametrize("decay", [pytest.param("kernels", marks=pytest.mark.slow), "matrices"])
@pytest.mark.parametrize(("axis", "name"), PARTS)
def test_the_same_parameters_are_decayed(axis, name, decay):
    """Sent to the names of the mirror: parameters of ones where JAX decays, of zeros elsewhere."""
    config = matrix.tiny(*{"topology": (name, "attention"), "mixer": ("mhc", name)}.get(axis, ("mhc", "attention")))
    if axis == "channel":
        config = config.replace(mlp=registry.get(axis, name)().small())
    shapes = param_shapes(config)
    mask = decay_mask(OptimConfig(decay=decay), param_info(config), shapes)
    sent = interop.to_torch(config, jax.tree.map(lambda shape, on: np.full(shape.shape, np.float32(on)), shapes, mask))
    assert {key for key, x in sent.items() if np.any(x)} == decayed(build_twin(config), decay)
