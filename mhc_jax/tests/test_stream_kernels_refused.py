"""Streams, norms, derivatives and overridden methods that there are no kernels for."""

import contextlib
import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhc_jax
from mhc_jax import ConfigError
from mhc_jax.backend import compiling_for
from mhc_jax.kernels import streams as kernels
from mhc_jax.nn.ends import CopyEndsConfig
from mhc_jax.nn.init import ones
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.norms import Norm, NormConfig
from mhc_jax.nn.projections import PermutationsConfig, SinkhornConfig
from mhc_jax.nn.residual import DynamicMHCConfig, HyperConnectionsConfig, StaticMHCConfig
from mhc_jax.nn.residual.dynamic_mhc import DynamicMHC
from mhc_jax.nn.stack import Execution
from mhc_jax.ops.norm import rms_norm
from mhc_jax.ops.streams import Streams
from mhc_jax.tests.test_stream_kernels import ROUNDING, TOKENS, WIDTH, boundary, by_kernels, loss, model, perturbed


def test_checking_kernels_looks_for_no_device():
    """Which would keep the process from joining others, and a compiler from standing in for devices."""
    program = """
from jax._src.xla_bridge import backends_are_initialized
from mhc_jax.nn.ends import CopyEndsConfig
from mhc_jax.nn.lm import LMConfig
from mhc_jax.nn.mixers import GLAConfig
from mhc_jax.nn.residual import DynamicMHCConfig
parts = {"residual": DynamicMHCConfig(implementation="pallas"), "mixer": GLAConfig(implementation="pallas")}
LMConfig(vocab_size=9, max_len=9, width=128, ends=CopyEndsConfig(), **parts).validate()
assert not backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_there_is_no_kernel_for_is_refused():
    def check(config, width=WIDTH, policy="bfloat16"):
        config, ends = config.replace(implementation="pallas"), CopyEndsConfig()
        sizes = {"vocab_size": 9, "max_len": 9, "width": width}
        LMConfig(**sizes, residual=config, ends=ends, execution=Execution(policy=policy)).validate()

    check(StaticMHCConfig())
    with pytest.raises(ConfigError, match="static_mhc: implementation 'pallas': .* at most 8 streams, got 9; take"):
        check(StaticMHCConfig(streams=9))
    with pytest.raises(ConfigError, match="dynamic_mhc: .* need a width that 128 divides, got 96; take"):
        check(DynamicMHCConfig(), 96)
    with pytest.raises(ConfigError, match="8 streams of 65536 channels are too wide .*; take fewer"):
        check(StaticMHCConfig(streams=8), 65536)
    wide = StaticMHCConfig(streams=8), 4096
    check(*wide)
    with pytest.raises(ConfigError, match="8 streams of 4096 channels are too wide"):
        check(*wide, policy="bfloat16_wide_streams")
    with compiling_for("gpu"), pytest.raises(ConfigError, match="8 streams of 4096 channels are too wide"):
        check(*wide)
    with pytest.raises(ConfigError, match="static_mhc: .* carry float32 or bfloat16, not float16; take such a policy"):
        check(StaticMHCConfig(), policy="float16")
    long = DynamicMHCConfig(streams=8, projection=SinkhornConfig(iters=99))
    with (
        pytest.raises(
            ConfigError, match="sinkhorn: kernels hold at most 40 iterations of 8 x 8 matrices, not 99; take"
        ),
        compiling_for("tpu"),
    ):
        check(long)
    for target in contextlib.nullcontext(), compiling_for("gpu"):
        with target:
            check(long)
    with pytest.raises(ConfigError, match="unknown field 'implementation'"):
        HyperConnectionsConfig.from_dict({"kind": "hc", "implementation": "pallas"})
    for streams, fault in (
        (jnp.zeros((1, 16, WIDTH), jnp.float16), "carry float32 or bfloat16, not float16; take such a policy"),
        (jnp.zeros((1, 16, 8)), "need a width that 128 divides, got 8"),
    ):
        with pytest.raises(ConfigError, match=fault):
            kernels.read(Streams.copies(streams, 2), jnp.ones(2), None)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("N", [1, 4])
def test_the_widest_streams_that_are_not_refused_have_a_kernel(N, dtype):
    D = max(D for D in range(WIDTH, 2**15, WIDTH) if not kernels.fault(N, D, dtype, "tpu"))
    h, y = (jax.ShapeDtypeStruct((1, 16, *shape), dtype) for shape in ((N, D), (D,)))

    def total(h, y, gain):
        same = [jnp.ones(N)] * 2
        found = boundary(h, [y] * 2, same, same, [jnp.ones((N, N))] * 2, (gain, gain))
        return sum(jnp.sum(x.astype(jnp.float32)) for x in found)

    jax.eval_shape(jax.grad(total, argnums=(0, 1, 2)), h, y, jnp.ones(D))


def test_a_norm_with_a_matrix_is_refused_on_gpus():
    norm = kernels.Normalised(lambda u, matrix: u @ matrix, (jnp.eye(WIDTH),), jnp.float32)
    with compiling_for("gpu"), pytest.raises(ConfigError, match="take norms whose parameters are vectors; take impl"):
        kernels.read(Streams.copies(jnp.zeros((1, 16, WIDTH)), 2), jnp.ones(2), None, norm=norm)


class GroupNorm(Norm):
    """A norm from outside that no kernel can hold: of groups of 16 channels, with one gain each."""

    def __init__(self, width, init):
        self.scale = init("scale", ones, width // 16, axes=("group",))

    def __call__(self, x):
        groups = x.reshape(*x.shape[:-1], -1, 16)
        return (self.scale[...].astype(x.dtype)[:, None] * rms_norm(groups, jnp.ones(16), eps=1e-6)).reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class GroupNormConfig(NormConfig):
    def build(self, width, init, channels="width"):
        return GroupNorm(width, init)


def test_a_norm_that_a_kernel_cannot_hold_runs_outside_it():
    config = model("mhc").replace(norm=GroupNormConfig(), width=256, layers=1, mlp=None)
    params, tokens = perturbed(config), TOKENS[:, :3]
    found, want = (mhc_jax.apply(c, params, tokens).logits_BTV for c in (by_kernels(config), config))
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("topology", ["mhc", "dynamic_mhc"])
def test_derivatives_without_a_kernel_are_refused(topology):
    config = by_kernels(model(topology).replace(layers=1, mlp=None))
    shapes = jax.eval_shape(lambda: mhc_jax.init(config, jax.random.key(0)))

    def product(params):
        return jax.jvp(jax.grad(lambda params: loss(params, config)[0]), (params,), (params,))

    with pytest.raises(ConfigError, match="first derivatives in reverse mode only; .* take implementation 'xla'"):
        jax.eval_shape(product, shapes)


class Cold(DynamicMHC):
    """Writes that are half as large."""

    def coefficients(self, h, scope):
        h, (pre, post, res) = super().coefficients(h, scope)
        return h, (pre, post / 2, res)


@dataclasses.dataclass(frozen=True)
class ColdConfig(DynamicMHCConfig):
    def build(self, width, policy, init):
        return Cold(self, width, policy, init)


@dataclasses.dataclass(frozen=True)
class HalfMixed(PermutationsConfig):
    def project(self, logits, streams):
        return 0.5 * jnp.eye(streams) + 0.5 * super().project(logits, streams)


@dataclasses.dataclass(frozen=True)
class Softened(SinkhornConfig):
    def project(self, logits, streams):
        return super().project(logits / 2, streams)


@pytest.mark.parametrize(
    "residual",
    [
        ColdConfig(streams=2),
        *(DynamicMHCConfig(streams=2, bias="zeros", projection=x()) for x in (HalfMixed, Softened)),
    ],
    ids=["coefficients", "permutations", "sinkhorn"],
)
def test_what_a_subclass_overrides_is_not_left_to_kernels_of_its_base(residual):
    config = model("dynamic_mhc").replace(residual=residual)
    params = jax.tree.map(lambda x: 4 * x, perturbed(config))  # the streams separate
    found, want = (mhc_jax.apply(c, params, TOKENS).logits_BTV for c in (by_kernels(config), config))
    assert jnp.abs(found - want).max() < 1e-4 * jnp.abs(want).max()
