"""A tiny model of each family compiled for four chips of TPU v5e, which takes the tpu extra and no TPU."""

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.aot

TINY = "--data.seq-len 128 --data.batch-size 8 --train.accumulate 1 --model.width 64 --model.layers 6 --mesh.fsdp 4"
GPT = f"{TINY} --model.mixer.heads 2 --model.vocab-size 50304"
# At widths of 64 and 128 the compiler of TPUs (libtpu 0.0.42.1) aborts over a reduction of this model.
SSM = f"{TINY} --data.tokenizer bytes --model.width 256 --model.execution.policy bfloat16"
KERNELS = f"{GPT} --model.width 128 --model.residual.implementation pallas"


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("gpt2", GPT),
        ("gpt2_mhc", GPT),
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
    assert "v5e:2x2: 4 x TPU v5 lite, mesh data 1 x fsdp 4 x tensor 1" in done.stdout
    [peak] = re.findall(r"^fits v5e:2x2: peak ([\d.]+) of 15.75 GiB a device$", done.stdout, re.MULTILINE)
    rows = dict(re.findall(r"^\| ([a-zMFU, -]+?) +\| +([\d.,]+) \|", done.stdout, re.MULTILINE))
    value = {row: float(number.replace(",", "")) for row, number in rows.items()}
    assert value["parameters"] < value["optimizer state"] < 1024 * float(peak)
    assert 0 < value["kernels of a layer, forward"] < value["kernels of a layer, backward"] < value["kernels"]
    assert value["estimated time without communication"] > 0
    assert 0 < value["MFU at that time"] < 100
    assert value["all-gather"] > 0
    assert value["all-reduce"] + value.get("reduce-scatter", 0) > 0
