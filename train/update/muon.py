"""Muon for the matrices of hidden layers (Jordan et al., https://kellerjordan.github.io/posts/muon)."""

import math

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from mhc_jax.functional import ParamInfo
from train.config import OptimConfig

# Names of dimensions, see mhc_jax/nn/init.py, of kernels that are no matrix of a hidden layer: heads, ends of streams,
# adapters of streams, and what predicts coefficients.
APART = {"vocab", "position", "stream", "streams", "coefficient", "rank"}
# Its last two dimensions are input and output of a kernel; those before, layers and experts, count matrices.
MATRIX = MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)


def is_hidden_matrix(info: ParamInfo) -> bool:
    """Whether Muon takes a parameter: the kernels of blocks, of attention, of other mixers and of channel mixers."""
    return info.role == "kernel" and "layer" in info.axes and not APART.intersection(info.axes)


def muon(config: OptimConfig) -> optax.GradientTransformation:
    """The directions of Muon, decay included, by which AdamW's rate ``lr`` is multiplied; equal to PyTorch's.

    The sum of momentum that PyTorch scales by ``1 - momentum`` is not scaled here: directions do not depend on it.
    """
    return optax.chain(
        optax.trace(config.muon_momentum, nesterov=True),
        optax.stateless(lambda updates, params: _orthogonalized(updates, config)),
        optax.add_decayed_weights(config.muon_weight_decay),
        optax.scale(config.muon_lr / config.lr if config.muon_lr else 1.0),
    )


def _orthogonalized(updates: optax.Updates, config: OptimConfig) -> optax.Updates:
    # Without momentum of its own, which optax corrects for its start and PyTorch does not.
    newton_schulz = scale_by_muon(
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: MATRIX, tree),
    )
    directions, _ = newton_schulz.update(updates, newton_schulz.init(updates))
    return jax.tree.map(lambda x: (shape_scale(config, *x.shape[-2:]) * x).astype(x.dtype), directions)


def shape_scale(config: OptimConfig, inputs: int, outputs: int) -> float:
    """The factor of an orthogonalised matrix, by ``muon_scale``."""
    if config.muon_scale == "original":
        return math.sqrt(max(1.0, outputs / inputs))
    return 0.2 * math.sqrt(max(inputs, outputs))
