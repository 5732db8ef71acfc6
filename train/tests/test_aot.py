"""A tiny model of each family compiled for four chips of TPU v5e, which takes the tpu extra and no TPU."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from mhc_jax.backend import compiling_for
from mhc_jax.ops.loss import chunked_cross_entropy
from mhc_jax.tests.test_coefficients_kernel import arguments, by_kernels
from train.measure import target

pytestmark = pytest.mark.aot

# Layers in a loop have figures of their own.
SCANNED = "--model.layers 6 --model.execution.layers scan"
TINY = f"--data.seq-len 128 --data.batch-size 8 --train.accumulate 1 --model.width 64 {SCANNED} --mesh.fsdp 4"
GPT = f"{TINY} --model.mixer.heads 2 --model.vocab-size 50304"
# At widths of 64 and 128 the compiler of TPUs (libtpu 0.0.42.1) aborts over a reduction of this model.
SSM = f"{TINY} --data.tokenizer bytes --model.width 256 --model.execution.policy bfloat16"
KERNELS = f"{GPT} --model.width 128 --model.residual.implementation pallas"


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("gpt2", GPT),
        ("gpt2", f"{GPT} --objective.implementation pallas"),
        ("gpt2", f"{GPT} --mesh.fsdp 2 --mesh.tensor 2 --objective.implementation pallas"),
        ("gpt2_mhc", GPT),
        ("gpt2_mhc", f"{GPT} --model.execution.layers auto"),
        ("gpt2_dynamic_mhc", GPT),
        ("gpt2@hc", GPT),
        ("gpt2_mhc", KERNELS),
        ("gpt2_dynamic_mhc", KERNELS),
        ("gpt2@shc", KERNELS),
        ("rlm_small", f"{GPT} --model.mlp.hidden 96 --model.mixer.implementation splash"),
        ("gla_170m_baseline", f"{GPT} --model.mixer.implementation pallas"),
        ("gated_deltanet_170m_baseline_shortconv", f"{GPT} --model.mixer.implementation pallas"),
        ("mhc_ssm_adapters", SSM),
        ("mhc_ssm_adapters", f"{SSM} --model.mixer.implementation pallas"),
    ],
)
def test_figures_of_a_slice_of_four(name, flags):
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, "-m", "train.inspect", name, "--compile.topology", "v5e:2x2", *flags.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"v5e:2x2: 4 x TPU v5 lite, mesh data 1 x fsdp [42] x tensor [12]", done.stdout)
    [peak] = re.findall(r"^fits v5e:2x2: peak ([\d.]+) of 15.75 GiB a device$", done.stdout, re.MULTILINE)
    rows = dict(re.findall(r"^\| ([a-zMFU, -]+?) +\| +([\d.,]+) \|", done.stdout, re.MULTILINE))
    value = {row: float(number.replace(",", "")) for row, number in rows.items()}
    assert value["parameters"] < value["optimizer state"] < 1024 * float(peak)
    if flags.endswith("layers auto"):
        assert "bfloat16, layers unroll, remat dots" in done.stdout
    else:
        assert 0 < value["kernels of a layer, forward"] < value["kernels of a layer, backward"] < value["kernels"]
    assert value["estimated time without communication"] > 0
    assert 0 < value["MFU at that time"] < 100
    assert value["all-gather"] > 0
    assert value["all-reduce"] + value.get("reduce-scatter", 0) > 0


SITES = [(1, 16, 128), (2, 300, 2048), (4, 1024, 768), (8, 530, 768)]


@pytest.mark.parametrize(
    ("machine", "N", "T", "width"),
    # The core of v4 does not hold 20 iterations of matrices of 8.
    [("v4:1x1x1", *site) for site in SITES[:3]]
    + [(machine, *site) for machine in ("v5e:1x1", "v5p:1x1x1", "v6e:1x1") for site in SITES],
)
def test_sites_with_coefficients_of_tokens(machine, N, T, width):
    """Two sites: a read, a boundary and a last write, forward and backward."""
    device = target.devices(target.find(machine))[0]

    def abstract(x, dtype):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=SingleDeviceSharding(device)), x
        )

    given = jax.eval_shape(
        lambda: jax.tree.map(jnp.asarray, arguments(np.random.default_rng(0), N, 2, T, width, 2, False))
    )
    inputs = [*(abstract(x, jnp.bfloat16) for x in given[:2]), *(abstract(x, jnp.float32) for x in given[2:])]

    def run(*inputs):
        results, pull = jax.vjp(lambda *xs: by_kernels(*xs, iters=20, order="columns_then_rows"), *inputs)
        return results, pull(results)

    with compiling_for("tpu", device.device_kind):
        text = jax.jit(run).lower(*inputs).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 6


@pytest.mark.parametrize("machine", ["v4:1x1x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1"])
@pytest.mark.parametrize(
    ("tokens", "words", "width", "dtype"),
    [
        (18, 61, 8, "bfloat16"),
        (1000, 50257, 768, "bfloat16"),
        (1024, 50304, 2048, "bfloat16"),
        (130, 999, 96, "float32"),
        (130, 4000, 1280, "bfloat16"),
    ],
)
def test_the_head_with_its_loss(machine, tokens, words, width, dtype):
    device = target.devices(target.find(machine))[0]

    def abstract(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    def loss(hidden, head, targets):
        return chunked_cross_entropy(hidden, head, targets, chunk=1, implementation="pallas")[0]

    given = abstract((1, tokens, width), dtype), abstract((words, width), dtype), abstract((1, tokens), "int32")
    for run, kernels in ((loss, 1), (jax.grad(loss, argnums=(0, 1)), 2)):
        with compiling_for("tpu", device.device_kind):
            text = jax.jit(run).lower(*given).compile().as_text()
        assert text.count('custom_call_target="tpu_custom_call"') == kernels
