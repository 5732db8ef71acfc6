"""What parameters say they are."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import mhc_jax.nn.init
from mhc_jax import registry
from mhc_jax.config import ConfigError
from mhc_jax.functional import param_info, param_shapes
from mhc_jax.models import gpt2, mhc_ssm, with_topology
from mhc_jax.nn.channel import ChannelMixer, ChannelMixerConfig
from mhc_jax.nn.init import Init, normal
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import RMSNormConfig
from mhc_jax.tree import flatten

SIZES = {"vocab_size": 11, "max_len": 4, "width": 8, "layers": 2}
ATTENTION = AttentionConfig(heads=2, qk_norm=RMSNormConfig())
MODELS = {name: with_topology(gpt2(**SIZES, mixer=ATTENTION), name) for name in registry.names("topology")}
MODELS |= {"adapters": mhc_ssm("adapters", **SIZES), "dense head": MODELS["plain"].replace(head="dense")}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_names_all_its_axes_from_the_vocabulary(name):
    infos, shapes = param_info(MODELS[name]), flatten(param_shapes(MODELS[name]))
    assert list(infos) == list(shapes)
    documented = mhc_jax.nn.init.__doc__.replace(",", " ").replace(":", " ").split()
    for path, info in infos.items():
        assert (info.shape, info.dtype) == (shapes[path].shape, shapes[path].dtype)
        assert len(info.axes) == len(info.shape), path
        assert set(info.axes) - {"layer"} <= set(documented), path
        assert (info.axes[:1] == ("layer",)) == path.startswith("blocks."), path


def test_an_axis_of_one_name_has_one_size_in_a_matrix_product():
    for model in MODELS.values():
        for path, info in param_info(model).items():
            sizes = dict(zip(info.axes, info.shape, strict=True))
            for axis, size in (("embed", 8), ("layer", 2), ("vocab", 11), ("position", 4)):
                assert sizes.get(axis, size) == size, path


def test_matrices_used_for_every_stream_and_branch_say_so():
    uses = {path: info.uses for path, info in param_info(MODELS["adapters"]).items() if info.role == "kernel"}
    streams = MODELS["adapters"].residual.stream_count
    assert uses.pop("blocks.mixer.residual.down.kernel") == streams + 1
    assert uses.pop("blocks.mixer.residual.up.kernel") == 2 * streams
    assert set(uses.values()) == {1}
    several = param_info(MODELS["multi_branch"])
    assert several["blocks.mlp.branch.up_proj.kernel"].uses == MODELS["multi_branch"].residual.branches
    assert several["blocks.mlp.residual.static_alpha"].uses == 1


def test_role_axes_and_uses_leave_the_draw_as_it_is():
    init = Init(jax.random.key(0), "a")
    told = init.repeated(3)("w", normal(1.0), 4, role="kernel", axes=("embed",), uses=2.0)
    np.testing.assert_array_equal(told[...], init("w", normal(1.0), 4)[...])
    assert told.get_metadata()["uses"] == 6


@pytest.mark.parametrize(
    ("shape", "options", "fault"),
    [
        ((2, 3), {}, r"parameter a/w \(2, 3\) needs one of the roles kernel, "),
        ((2,), {"role": "matrix"}, "needs one of the roles"),
        ((2, 3), {"role": "kernel", "axes": ("embed",)}, r"needs 2 names of axes, got \('embed',\)"),
    ],
)
def test_a_parameter_that_does_not_say_what_it_is_is_an_error(shape, options, fault):
    with pytest.raises(ConfigError, match=fault):
        Init(jax.random.key(0), "a")("w", normal(1.0), *shape, **options)


def test_a_parameter_made_without_init_is_named():
    with pytest.raises(ConfigError, match=r"parameters without a role, .*: blocks\.mlp\.branch\.bare"):
        param_info(MODELS["plain"].replace(mlp=BareConfig()))


@dataclasses.dataclass(frozen=True)
class BareConfig(ChannelMixerConfig):
    """Makes a parameter by itself."""

    def build(self, width, policy, init):
        return Bare(width)


class Bare(ChannelMixer):
    def __init__(self, width):
        self.bare = nnx.Param(jax.numpy.ones(width))
